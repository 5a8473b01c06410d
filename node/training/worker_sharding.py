"""One peer on several GPUs of a machine: FSDP2 shards the model over them, and to the swarm they are one.

Started by torchrun, one process a GPU. The first one is the peer: it has the node, the data and the strategy. The
others follow: they take part in each forward and backward pass, and in reading and writing parameters, as it says.
Every process gets its rows of each batch; a gradient is the mean over all rows, as without sharding.

source: Zhao et al., PyTorch FSDP, arXiv:2304.11277; `torch.distributed.fsdp.fully_shard` is its second form
"""

import time
import weakref
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from shoal.compression.update_codec import Values
from shoal.swarm.errors import UsageError

from .config import BatchSettings
from .data.windows import Batch, Ids
from .optimizers.inner import InnerOptimizer
from .parameter_layout import ParameterLayout
from .worker_steps import InnerSteps, StepResult

STEP, LOSS, READ, GRADIENTS, WRITE, STOP = range(6)
_HEAD = 8  # numbers that say what comes next
_LET_GO_MS = 10_000


class Ranks:
    """The processes of one peer. Every call is made by all of them, in the same order."""

    def __init__(self, device: torch.device) -> None:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.mesh = init_device_mesh(device.type, (self.count,))
        self._said: weakref.ref[torch.Tensor] | None = None

    def head(self, numbers: list[int] | None) -> list[int]:
        """What the first process is about to do; it gives it, the others get it."""
        padded = [*(numbers or []), *[0] * (_HEAD - len(numbers or []))]
        tensor = torch.tensor(padded, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, 0)
        self._said = weakref.ref(tensor)
        return [int(number) for number in tensor.cpu()]

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """The first process's tensor at all of them."""
        placed = tensor.to(self.device)
        dist.broadcast(placed, 0)
        return placed

    def close(self) -> None:
        """After the last word.

        gloo's threads let go of a broadcast's tensor a moment after it is over, and need the interpreter for that:
        one that comes to it when the interpreter ends aborts the process. So this waits until they have.
        """
        for _ in range(_LET_GO_MS):
            if self._said is None or self._said() is None:
                break
            time.sleep(0.001)
        dist.destroy_process_group()


def shard(model: nn.Module, ranks: Ranks) -> None:
    """In place: every block of the longest list of layers by itself, then the rest."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in max(lists, key=len, default=nn.ModuleList()):
        fully_shard(layer, mesh=ranks.mesh)
    fully_shard(model, mesh=ranks.mesh)


class ShardedParameters:
    """`outer_loop.LiveParameters` over all processes. Followers run the same methods through `follow`."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.layout = ParameterLayout.of({name: tuple(p.shape) for name, p in self._parameters.items()})

    def read(self, start: int = 0, stop: int | None = None) -> Values:
        return self._led(READ, start, self.layout.count if stop is None else stop)

    def gradients(self, start: int = 0, stop: int | None = None) -> Values:
        return self._led(GRADIENTS, start, self.layout.count if stop is None else stop)

    def write(self, start: int, values: Values) -> None:
        self._ranks.head([WRITE, start, start + len(values)])
        self.written(start, start + len(values), values)

    def _led(self, what: int, start: int, stop: int) -> Values:
        self._ranks.head([what, start, stop])
        return self.gathered(what, start, stop)

    def gathered(self, what: int, start: int, stop: int) -> Values:
        """The collective half of `read` and `gradients`."""
        found = np.zeros(stop - start, np.float32)
        for place in self.layout.within(start, stop):
            parameter = self._parameters[place.name]
            tensor: torch.Tensor | None = parameter.data if what == READ else parameter.grad
            if tensor is not None:
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                found[place.start - start : place.stop - start] = whole.detach().float().cpu().reshape(-1).numpy()
        return found

    def written(self, start: int, stop: int, values: Values | None) -> None:
        """The collective half of `write`; followers have no values."""
        flat = torch.empty(stop - start) if values is None else torch.from_numpy(np.ascontiguousarray(values))
        flat = self._ranks.share(flat)
        with torch.no_grad():
            for place in self.layout.within(start, stop):
                parameter = self._parameters[place.name]
                whole = flat[place.start - start : place.stop - start].reshape(place.shape)
                if isinstance(parameter.data, DTensor):
                    data = parameter.data
                    whole = distribute_tensor(whole, data.device_mesh, data.placements, src_data_rank=None)
                parameter.copy_(whole)


class ShardedSteps(InnerSteps):
    """`InnerSteps` over all processes; what the first one calls, `follow` repeats at the others."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401  a transformers model
        optimizer: InnerOptimizer,
        settings: BatchSettings,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """raises: UsageError when a batch cannot be shared out evenly"""
        super().__init__(model, optimizer, settings, device)
        if settings.sequences % ranks.count:
            raise UsageError(f"batch.sequences is {settings.sequences}, no multiple of the {ranks.count} GPUs")
        self.ranks = ranks

    def run(self, batch: Batch, step: int, *, moves: bool = True) -> StepResult:
        self._say(STEP, batch, step, moves)
        return self.stepped(batch, step, moves=moves)

    def loss(self, batch: Batch, start: int, stop: int) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().loss(batch, start, stop)  # inside of a step that all processes take
        part = _rows(batch, slice(start, stop))
        self._say(LOSS, part, 0, moves=False)
        return super().loss(part, 0, len(part.inputs))

    def stepped(self, batch: Batch, step: int, *, moves: bool) -> StepResult:
        """The collective half of `run`. batch: of all processes; each takes its rows"""
        result = super().run(_rows(batch, slice(self.ranks.rank, None, self.ranks.count)), step, moves=moves)
        loss = torch.tensor([result.loss], device=self.device)
        dist.all_reduce(loss)
        return StepResult(float(loss) / self.ranks.count, batch.tokens if result.tokens else 0)

    def measured(self, batch: Batch) -> None:
        """The collective half of `loss`."""
        with torch.no_grad():
            super().loss(batch, 0, len(batch.inputs))

    def close(self) -> None:
        """Let the followers go."""
        self.ranks.head([STOP])
        self.ranks.close()

    def clipped(self) -> float:
        """The norm over all shards, the same at all processes, so that all leave out the same steps."""
        parameters = self.optimizer.parameters
        norm = nn.utils.clip_grad_norm_(parameters, self.optimizer.settings.clip or float("inf"))
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _say(self, what: int, batch: Batch, step: int, moves: bool) -> None:
        rows, length = batch.inputs.shape
        self.ranks.head([what, rows, length, step, moves, batch.positions is not None])
        for ids in (batch.inputs, batch.targets, batch.positions):
            if ids is not None:
                self.ranks.share(torch.from_numpy(ids))


def follow(ranks: Ranks, parameters: ShardedParameters, steps: ShardedSteps) -> None:
    """A process that is not the first one: does what it hears until it is told to stop."""
    while True:
        what, *numbers = ranks.head(None)
        match what:
            case 0 | 1:
                rows, length, step, moves, positions, *_ = numbers
                ids = [_heard(ranks, (rows, length)) for _ in range(3 if positions else 2)]
                batch = Batch(ids[0], ids[1], ids[2] if positions else None)
                if what == STEP:
                    steps.stepped(batch, step, moves=bool(moves))
                else:
                    steps.measured(batch)
            case 2 | 3:
                parameters.gathered(what, numbers[0], numbers[1])
            case 4:
                parameters.written(numbers[0], numbers[1], None)
            case _:
                return


def _heard(ranks: Ranks, shape: tuple[int, int]) -> Ids:
    return ranks.share(torch.empty(shape, dtype=torch.int64)).cpu().numpy()


def _rows(batch: Batch, which: slice) -> Batch:
    positions = None if batch.positions is None else batch.positions[which]
    return Batch(batch.inputs[which], batch.targets[which], positions)
