"""One process of a peer that is sharded over several: run by torchrun in `test_sharding.py`; the first one reports."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from training.tiny_run import tiny_config

from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.worker_sharding import Ranks, ShardedParameters, ShardedSteps, dismiss, follow, shard
from shoal.node.training.worker_start import prepared


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    file = tiny_config(folder)
    ready = prepared(file, folder / "cache")
    ranks = Ranks(torch.device("cpu"))
    shard(ready.module, ranks)
    optimizer = InnerOptimizer(file.config.inner, ready.module.named_parameters())
    parameters = ShardedParameters(ready.module, ranks)
    steps = ShardedSteps(ready.module, optimizer, file.config.batch, torch.device("cpu"), ranks)
    if ranks.rank:
        follow(ranks, parameters, steps)
        ranks.close()
        return
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
    dismiss(ranks)
    ranks.close()
    out.write_text(json.dumps({"losses": losses, "held": held, "restored": restored}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
