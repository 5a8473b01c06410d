"""Rotary position embeddings, computed once per position and then looked up.

The model's own module makes them (any rope type, partial, one per kind of layer). Types that change with the length
("longrope") have a second table for sessions whose reserved length exceeds the original context, so that a session
keeps one kind from its first position to its last.
"""

import inspect
from collections.abc import Sequence

import torch

from .attention_plan import AttentionPlan, Piece
from .transformers_imports import Untyped

_BLOCK = 1024  # positions by which a table grows

Rope = tuple[torch.Tensor, torch.Tensor]  # cos, sin: (1, T, width)


class RotaryTable:
    """cos and sin for any positions, per kind of layer."""

    def __init__(
        self, rotary: Untyped, layer_types: Sequence[str], config: Untyped, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._rotary = rotary
        self._by_type = "layer_type" in inspect.signature(rotary.forward).parameters
        self._types = sorted(set(layer_types)) if self._by_type else [""]
        self._x = torch.empty((1, 1, 1), dtype=dtype, device=device)
        types = getattr(rotary, "rope_type", "default")
        kinds = set(types.values()) if isinstance(types, dict) else {types}
        self._original = int(getattr(config, "original_max_position_embeddings", 0) or 0) or int(
            getattr(rotary, "original_max_seq_len", 0) or 0
        )
        self._switches = "longrope" in kinds and self._original > 0
        self._tables: dict[tuple[str, bool], Rope] = {}
        self._signed: Rope | None = None

    def at(self, pieces: Sequence[Piece]) -> dict[str, Rope]:
        """The embeddings of a packed batch by kind of layer ("" when all kinds share them)."""
        return {kind: self._of_kind(kind, pieces) for kind in self._types}

    def signed_at(self, plan: AttentionPlan) -> Rope:
        """The same for layers of one kind as `signed_sin` gives it, but made once and not in every step."""
        pieces = plan.pieces
        if self._switches:
            return signed_sin(self.at(pieces)[""])
        stop = max(piece.start + piece.count for piece in pieces)
        if self._signed is None or self._signed[0].shape[0] < stop:
            self._signed = signed_sin(self._table("", False, stop))
        cos, sin = self._signed
        if len(pieces) == 1:
            start = pieces[0].start
            return cos[start:stop], sin[start:stop]
        positions = plan.positions()
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def first(self, count: int, kind: str) -> Rope:
        """The embeddings of positions 0 to count - 1."""
        cos, sin = self._table(kind if self._by_type else "", False, count)
        return cos[:, :count], sin[:, :count]

    def _of_kind(self, kind: str, pieces: Sequence[Piece]) -> Rope:
        parts = []
        for piece in pieces:
            long = self._switches and piece.room.tokens > self._original
            cos, sin = self._table(kind, long, piece.start + piece.count)
            parts.append(
                (cos[:, piece.start : piece.start + piece.count], sin[:, piece.start : piece.start + piece.count])
            )
        if len(parts) == 1:
            return parts[0]
        return torch.cat([cos for cos, _ in parts], 1), torch.cat([sin for _, sin in parts], 1)

    def _table(self, kind: str, long: bool, length: int) -> Rope:
        table = self._tables.get((kind, long))
        if table is None or table[0].shape[1] < length:
            rows = max(2 * table[0].shape[1] if table else 0, -(-length // _BLOCK) * _BLOCK)
            if long:
                rows = max(rows, self._original + 1)  # one position beyond is what switches the module
            elif self._switches:
                rows = min(rows, self._original)
            positions = torch.arange(rows, device=self._x.device)[None]
            cos, sin = self._rotary(self._x, positions, kind) if self._by_type else self._rotary(self._x, positions)
            table = self._tables[kind, long] = (cos, sin)
        return table


def signed_sin(rope: Rope) -> Rope:
    """cos and sin as (T, 1, W); rotate_half(q) * sin equals swap_halves(q) * signed sin, number for number."""
    cos, sin = rope[0][0][:, None], rope[1][0][:, None]
    half = sin.shape[-1] // 2
    return cos, torch.cat((sin[..., :half].neg(), sin[..., half:]), -1)
