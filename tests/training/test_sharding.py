"""FSDP2 over two processes without a GPU: the same numbers as without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training import sharded_peer
from training.tiny_run import tiny_config

from shoal.node.training.worker_start import prepared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_peer_over_two_processes_learns_what_it_learns_in_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    out = tmp_path / "out.json"
    script = sharded_peer.__file__
    assert script is not None
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(tmp_path), str(out)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told, arrays = json.loads(out.read_text()), np.load(out.with_suffix(".npz"))
    assert told["restored"]
    alone = prepared(tiny_config(tmp_path), tmp_path / "cache")
    batch = alone.data.windows.batch([0, 1, 2, 3])
    np.testing.assert_array_equal(arrays["before"], alone.parameters.read())
    losses = [alone.steps.run(batch, step).loss for step in range(3)]
    np.testing.assert_allclose(told["losses"], losses, rtol=1e-5)
    np.testing.assert_allclose(arrays["after"], alone.parameters.read(), atol=1e-4)
    with torch.no_grad():
        assert told["held"] == pytest.approx(float(alone.steps.loss(batch, 0, 2)), rel=1e-4)
    alone.steps.run(batch, 3, moves=False)
    np.testing.assert_allclose(arrays["gradient"], alone.parameters.gradients(), atol=1e-4)
