"""`StageCompute` and `HomeCompute` on torch: tensors come and go as bytes, everything is computed on one thread.

Shapes: B sequences of S tokens, D hidden.
"""

import hashlib

import numpy as np
import torch

from shoal.compression.activations import HEADER, body_bytes
from shoal.node.activation_tensors import bytes_of, tensor_of
from shoal.node.training.data.windows import Batch
from shoal.swarm.errors import BadActivation
from shoal.swarm.identifiers import PeerId
from shoal.swarm.pipeline.stage_compute import Counting, Microbatch

from .compute_thread import BACKWARD, FORWARD, STEP, ComputeThread
from .stage_steps import StageSteps

IDS = np.dtype("<i4")


class ByteCompute:
    """length: S; hidden: D; wire: dtype of the tensors between stages; most: sequences of one microbatch"""

    def __init__(self, steps: StageSteps, length: int, hidden: int, wire: str, most: int, vocabulary: int) -> None:
        self.steps = steps
        self.thread = ComputeThread("pipeline stage")
        self._length, self._hidden, self._wire, self._most = length, hidden, wire, most
        self._vocabulary = vocabulary

    def tensor_bytes(self, sequences: int) -> int:
        """raises: BadActivation"""
        if not 1 <= sequences <= self._most:
            raise BadActivation(f"{sequences} sequences; between 1 and {self._most} were agreed on")
        return HEADER.size + body_bytes(self._wire, sequences * self._length, self._hidden)

    async def forward(self, work: Microbatch, tensor: bytes) -> bytes:
        """raises: BadActivation, NotFinite"""
        positions = self._positions(work)

        def run() -> bytes:
            out = self.steps.forward(self._tensor(tensor, work), positions, seed_of(work), learns=work.learns)
            return self._bytes(out)

        return await self.thread.run(run, FORWARD)

    async def backward(self, work: Microbatch, tensor: bytes, gradient: bytes, count: Counting) -> bytes:
        """raises: BadActivation, NotFinite"""
        positions = self._positions(work)

        def run() -> bytes:
            if count.fresh:
                self.steps.discard()
            x, back = self._tensor(tensor, work), self._tensor(gradient, work)
            found = self.steps.backward(x, positions, seed_of(work), back, adds=count.adds)
            assert found is not None
            return self._bytes(found)

        return await self.thread.run(run, BACKWARD)

    async def loss(self, work: Microbatch, tensor: bytes, count: Counting) -> tuple[float, bytes]:
        """raises: BadActivation, NotFinite"""
        positions, targets = self._positions(work), self._targets(work)

        def run() -> tuple[float, bytes]:
            if count.fresh:
                self.steps.discard()
            loss, found = self.steps.loss_of(
                self._tensor(tensor, work), targets, positions, seed_of(work), learns=work.learns, adds=count.adds
            )
            return loss, b"" if found is None else self._bytes(found)

        return await self.thread.run(run, BACKWARD)

    async def square(self, sequences: int) -> float:
        return await self.thread.run(lambda: self.steps.mean(sequences), STEP)

    async def discard(self) -> None:
        await self.thread.run(self.steps.discard, STEP)

    def close(self) -> None:
        self.thread.close()

    def _tensor(self, data: bytes, work: Microbatch) -> torch.Tensor:
        """(B, S, D) float32. raises: BadActivation"""
        device, count = self.steps.device, work.sequences * self._length
        return tensor_of(data, count, self._hidden, torch.float32, device).view(work.sequences, self._length, -1)

    def _bytes(self, x: torch.Tensor) -> bytes:
        return bytes_of(x.detach().reshape(-1, self._hidden), self._wire)

    def _targets(self, work: Microbatch) -> torch.Tensor:
        return self._ids(work.targets, work, self._vocabulary, "targets")

    def _positions(self, work: Microbatch) -> torch.Tensor | None:
        return self._ids(work.positions, work, self._length, "positions") if work.positions else None

    def _ids(self, data: bytes, work: Microbatch, limit: int, what: str) -> torch.Tensor:
        """(B, S) int64. raises: BadActivation"""
        if len(data) != work.sequences * self._length * IDS.itemsize:
            raise BadActivation(f"{len(data)} bytes of {what} for {work.sequences} sequences of {self._length}")
        ids = np.frombuffer(data, IDS).astype(np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < limit:
            raise BadActivation(f"{what} are out of range")
        return torch.from_numpy(ids.reshape(work.sequences, self._length)).to(self.steps.device)


class HomeByteCompute(ByteCompute):
    """Stage 0, which knows the ids of its microbatches. `batch` is set for each step, `parts` too: [start, stop)"""

    batch: Batch
    parts: list[tuple[int, int]]

    def works(self, batch: Batch, micro: int, driver: PeerId, *, learns: bool) -> list[Microbatch]:
        """A batch in microbatches; the step is the driver's to set."""

        rows = len(batch.inputs)
        self.batch = batch
        self.parts = [(start, min(start + micro, rows)) for start in range(0, rows, micro)]
        return [
            Microbatch(
                driver,
                0,
                number,
                stop - start,
                learns,
                batch.targets[start:stop].astype(IDS).tobytes(),
                b"" if batch.positions is None else batch.positions[start:stop].astype(IDS).tobytes(),
            )
            for number, (start, stop) in enumerate(self.parts)
        ]

    async def embedded(self, work: Microbatch) -> bytes:
        """raises: NotFinite"""
        ids, positions = self._inputs(work), self._positions(work)

        def run() -> bytes:
            return self._bytes(self.steps.forward(ids, positions, seed_of(work), learns=work.learns))

        return await self.thread.run(run, FORWARD)

    async def taken_back(self, work: Microbatch, gradient: bytes) -> None:
        """raises: BadActivation"""
        ids, positions = self._inputs(work), self._positions(work)

        def run() -> None:
            self.steps.backward(ids, positions, seed_of(work), self._tensor(gradient, work), adds=True)

        await self.thread.run(run, BACKWARD)

    async def loss(self, work: Microbatch, tensor: bytes, count: Counting) -> tuple[float, bytes]:
        """The head at home. raises: BadActivation, NotFinite"""
        if not 0 <= work.number < len(self.parts):
            raise BadActivation(f"there is no microbatch {work.number}")
        start, stop = self.parts[work.number]
        targets = torch.from_numpy(self.batch.targets[start:stop]).to(self.steps.device)

        def run() -> tuple[float, bytes]:
            x = self._tensor(tensor, work)
            loss, found = self.steps.head_of(x, targets, learns=work.learns, adds=count.adds)
            return loss, b"" if found is None else self._bytes(found)

        return await self.thread.run(run, BACKWARD)

    async def whole(self, work: Microbatch) -> float:
        """raises: NotFinite"""
        ids, positions, targets = self._inputs(work), self._positions(work), self._targets(work)

        def run() -> float:
            steps, learns = self.steps, work.learns
            return steps.loss_of(ids, targets, positions, seed_of(work), learns=learns, adds=learns)[0]

        return await self.thread.run(run, BACKWARD)

    def _inputs(self, work: Microbatch) -> torch.Tensor:
        start, stop = self.parts[work.number]
        return torch.from_numpy(self.batch.inputs[start:stop]).to(self.steps.device)


def seed_of(work: Microbatch) -> int:
    """Of dropout: another one for every microbatch, the same for its second forward pass."""
    key = f"{work.driver} {work.step} {work.number}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "little")
