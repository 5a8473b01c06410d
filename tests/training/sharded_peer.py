"""One process of a peer that is sharded over several: run by torchrun in `test_sharding.py`; the first one reports."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from training.tiny_run import tiny_config

from shoal.node.training.worker_processes import follow_first, is_follower
from shoal.node.training.worker_start import prepared


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    file = tiny_config(folder)
    if is_follower():
        follow_first(file, folder / "cache")
        return
    ready = prepared(file, folder / "cache")
    parameters, steps = ready.parameters, ready.steps
    batch = ready.data.windows.batch([0, 1, 2, 3])
    before = parameters.read()
    losses = [steps.run(batch, step).loss for step in range(3)]
    after = parameters.read()
    with torch.no_grad():
        held = float(steps.loss(batch, 0, 2))
    steps.run(batch, 3, moves=False)
    gradient = parameters.gradients()
    parameters.write(0, before)
    restored = bool(np.array_equal(parameters.read(), before))
    np.savez(out.with_suffix(".npz"), before=before, after=after, gradient=gradient)
    steps.close()
    out.write_text(json.dumps({"losses": losses, "held": held, "restored": restored}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
