"""What the layers of one forward pass share: whose positions are in the batch, where they go, what each may see.

Shapes: T new positions of the batch, N of one session, S sessions, L positions that a session holds afterwards, counted
from the first visible one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from .kv_cache import PagedCache, Reservation

_MINUS_INFINITY = float("-inf")


@dataclass(frozen=True, slots=True)
class Piece:
    """The new positions [start, start + count) of one session."""

    room: Reservation
    start: int
    count: int


@dataclass(slots=True)
class AttentionPlan:
    """What all layers of one forward pass share."""

    cache: PagedCache
    pieces: Sequence[Piece]
    gathers: bool  # decode steps of several sessions as one padded batch: fewer, larger kernels on a GPU
    offsets: list[int] = field(init=False)  # of each piece in the batch
    steps_alone: bool = field(init=False)  # every piece is one position, and each room one run
    slots: torch.Tensor | None = field(init=False)  # (T,) where new positions go; None when it is one run
    seen: dict[int, int | None] = field(default_factory=dict)  # layer -> its window, filled as layers attend
    _masks: dict[tuple[int, int], torch.Tensor | None] = field(default_factory=dict)
    _padded: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offsets = [0, *accumulate(piece.count for piece in self.pieces)]
        self.steps_alone = all(piece.count == 1 and piece.room.slots is None for piece in self.pieces)
        first = self.pieces[0]
        self.slots = None if len(self.pieces) == 1 and first.room.slots is None else self._slots()

    def _slots(self) -> torch.Tensor:
        if self.steps_alone:
            return torch.tensor([p.room.base + p.start for p in self.pieces], device=self.cache.device)
        return torch.cat([self.places(piece, piece.start) for piece in self.pieces])

    def positions(self) -> torch.Tensor:
        """(T,) of the new positions, each in its session."""
        if self.steps_alone:
            return torch.tensor([piece.start for piece in self.pieces], device=self.cache.device)
        runs = [torch.arange(p.start, p.start + p.count, device=self.cache.device) for p in self.pieces]
        return torch.cat(runs)

    def places(self, piece: Piece, first: int) -> torch.Tensor:
        """(L,) places in the pool of the positions [first, start + count) of a piece's session."""
        stop = piece.start + piece.count
        if piece.room.slots is not None:
            return piece.room.slots[first:stop]
        return torch.arange(piece.room.base + first, piece.room.base + stop, device=self.cache.device)

    def first_visible(self, piece: Piece, window: int) -> int:
        """The first position that any new position of a piece may see; window 0: no limit."""
        return max(0, piece.start - window + 1) if window else 0

    def mask(self, at: int, window: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(N, L) to add to the scores of piece `at`; None when every new position sees every one of the L."""
        piece = self.pieces[at]
        if piece.count == 1:
            return None
        if (at, window) not in self._masks:
            stop, device = piece.start + piece.count, self.cache.device
            rows = torch.arange(piece.start, stop, device=device)[:, None]
            columns = torch.arange(self.first_visible(piece, window), stop, device=device)[None]
            hidden = columns > rows
            if window:
                hidden |= columns <= rows - window
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=device)
            self._masks[at, window] = zeros.masked_fill_(hidden, _MINUS_INFINITY)
        return self._masks[at, window]

    def padded(self, window: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """For one new position per session: (S, Lmax) places in the pool, (S, 1, 1, Lmax) to add to the scores.

        A shorter session is padded with a place of its own: any other may hold NaN, which a weight of 0 does not hide.
        """
        if window not in self._padded:
            places = [self.places(piece, self.first_visible(piece, window)) for piece in self.pieces]
            lengths = torch.tensor([len(row) for row in places], device=self.cache.device)
            index = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
            empty = torch.arange(index.shape[1], device=self.cache.device)[None] >= lengths[:, None]
            index = torch.where(empty, index[:, :1], index)
            bias = torch.zeros(empty.shape, dtype=dtype, device=self.cache.device).masked_fill_(empty, _MINUS_INFINITY)
            self._padded[window] = (index, bias[:, None, None])
        return self._padded[window]
