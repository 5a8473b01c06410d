"""Keys and values of all sessions in one pool of pages per layer.

A session reserves at `open` what it can ever need, in one run of pages where there is one: attention then reads views
of the pool, with no copy. On a fragmented pool it gets scattered pages, and attention gathers them.

Shapes: T tokens of the pool, H key-value heads, D width of a head. A page is PAGE_TOKENS consecutive tokens.
source: Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention, arXiv:2309.06180
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

from dataclasses import dataclass, field

import torch

from shoal.swarm.errors import OutOfMemory, Refused

PAGE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Pages [first, first + count)."""

    first: int
    count: int


@dataclass(slots=True)
class Reservation:
    """One session's room in the pool, and how much of it is filled."""

    runs: tuple[Run, ...]
    tokens: int  # asked for
    slots: torch.Tensor | None = None  # (tokens,) int64, place of each position; None when the room is one run
    length: int = 0  # positions held
    # Chunks that lie in their places already, by first position: which, and from where on nothing was computed over it.
    placed: dict[int, tuple[object, int]] = field(default_factory=dict)

    @property
    def size_tokens(self) -> int:
        """What it takes of the pool."""
        return sum(run.count for run in self.runs) * PAGE_TOKENS

    @property
    def base(self) -> int:
        """Place of position 0 in a reservation of one run."""
        return self.runs[0].first * PAGE_TOKENS

    def places(self, start: int, stop: int) -> slice | torch.Tensor:
        """Where positions [start, stop) stand in the pool."""
        return slice(self.base + start, self.base + stop) if self.slots is None else self.slots[start:stop]

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on; raises: ValueError when fewer are held."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length
        self.placed.clear()  # what was computed and is forgotten may have gone over it


class PagedCache:
    """Room for `capacity` tokens in each hosted layer. Memory is touched only as sessions fill it (on CPU)."""

    def __init__(self, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pages = max(1, capacity // PAGE_TOKENS)
        self._free = [Run(0, self.pages)]  # ascending, never adjacent
        self._dtype, self._device = dtype, device
        self._pools: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def capacity(self) -> int:
        return self.pages * PAGE_TOKENS

    @property
    def position_bytes(self) -> int:
        """What one position takes, in all layers that have computed something."""
        pools = [pool for pair in self._pools.values() for pool in pair]
        return sum(pool[0].numel() * pool.element_size() for pool in pools)

    @property
    def free_tokens(self) -> int:
        return sum(run.count for run in self._free) * PAGE_TOKENS

    def has_run(self, tokens: int) -> bool:
        """Whether so many fit into one run of free pages."""
        return max((run.count for run in self._free), default=0) * PAGE_TOKENS >= tokens

    def reserve(self, tokens: int) -> Reservation:
        """raises: OutOfMemory"""
        wanted = max(1, -(-tokens // PAGE_TOKENS))
        if tokens > self.free_tokens:
            raise OutOfMemory(
                f"KV cache full: the session needs {tokens} tokens, {self.free_tokens} of {self.capacity} are free"
            )
        fitting = [run for run in self._free if run.count >= wanted]
        if fitting:
            run = min(fitting, key=lambda run: run.count)
            self._take(run, wanted)
            return Reservation((Run(run.first, wanted),), tokens)
        runs: list[Run] = []
        while wanted:
            run = max(self._free, key=lambda run: run.count)
            taken = min(wanted, run.count)
            self._take(run, taken)
            runs.append(Run(run.first, taken))
            wanted -= taken
        places = [torch.arange(r.first * PAGE_TOKENS, (r.first + r.count) * PAGE_TOKENS) for r in runs]
        return Reservation(tuple(runs), tokens, torch.cat(places)[:tokens].to(self._device))

    def release(self, reservation: Reservation) -> None:
        """Give the pages back; a second release is a bug of the caller."""
        merged: list[Run] = []
        for run in sorted([*self._free, *reservation.runs], key=lambda run: run.first):
            if merged and merged[-1].first + merged[-1].count > run.first:
                raise ValueError("pages were released twice")
            if merged and merged[-1].first + merged[-1].count == run.first:
                merged[-1] = Run(merged[-1].first, merged[-1].count + run.count)
            else:
                merged.append(run)
        self._free = merged

    def pool(self, layer: int, key_THD: torch.Tensor, value_THD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two pools of a layer, (capacity, H, D) each, made when the layer first writes.

        raises: OutOfMemory
        """
        pools = self._pools.get(layer)
        if pools is None:
            try:
                pools = (
                    torch.empty((self.capacity, *key_THD.shape[1:]), dtype=self._dtype, device=self._device),
                    torch.empty((self.capacity, *value_THD.shape[1:]), dtype=self._dtype, device=self._device),
                )
            except (RuntimeError, MemoryError) as error:
                raise OutOfMemory(f"no memory for a KV cache of {self.capacity} tokens") from error
            self._pools[layer] = pools
        return pools

    def width(self, layers: range) -> tuple[int, int]:
        """(H, D) of these layers' keys and values; (0, 0) for no layers.

        raises: Refused when they differ, or nothing was ever computed here
        """
        shapes = {pool.shape[1:] for layer in layers for pool in self._pools.get(layer, ())}
        if layers and len(shapes) != 1:
            raise Refused("the caches of this model's layers are not of one shape and cannot be moved")
        heads, width = shapes.pop() if shapes else (0, 0)
        return heads, width

    @torch.inference_mode()
    def read(self, layers: range, room: Reservation, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy on the CPU of positions [start, stop) of a session: (L, T, H, D) keys and values. raises: Refused"""
        heads, width = self.width(layers)
        if not layers:
            empty = torch.empty((0, stop - start, heads, width), dtype=self._dtype)
            return empty, empty
        places = room.places(start, stop)
        keys, values = (torch.stack([self._pools[i][kind][places] for i in layers]).cpu() for kind in (0, 1))
        return keys, values

    @torch.inference_mode()
    def write(
        self, layers: range, room: Reservation, start: int, keys_LTHD: torch.Tensor, values_LTHD: torch.Tensor
    ) -> None:
        """Fill positions from `start` on, which are counted as held only when `room.length` says so."""
        places = room.places(start, start + keys_LTHD.shape[1])
        for row, layer in enumerate(layers):
            keys, values = self._pools[layer]
            keys[places] = keys_LTHD[row].to(self._device)
            values[places] = values_LTHD[row].to(self._device)

    def _take(self, run: Run, count: int) -> None:
        at = self._free.index(run)
        rest = [Run(run.first + count, run.count - count)] if run.count > count else []
        self._free[at : at + 1] = rest
