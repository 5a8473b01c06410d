"""Where a trainer stands in the data: the roster after each round, and how much of the own share is used."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Outcome

from .data.assignment import DataOrder, Roster, Share, share_of

KEPT_ROSTERS = 4
_roster_decoder = msgspec.msgpack.Decoder(Roster)
_roster_encoder = msgspec.msgpack.Encoder(order="deterministic")


class DataProgress:
    """lag: rounds between a roster and the round whose shares it decides; 1 when outcomes arrive while the next round
    is trained already, so that all peers decide by what all of them surely have"""

    def __init__(self, order: DataOrder, lag: int) -> None:
        self.order, self.lag = order, lag
        self.tokens = 0  # learned from since the start of the run, by this peer
        self._rosters = [Roster()]  # newest last
        self._round = 0  # whose share `_used` counts
        self._used = 0  # windows

    @property
    def roster(self) -> Roster:
        return self._rosters[-1]

    def after(self, outcome: Outcome) -> None:
        peers = tuple(peer for peer, _ in outcome.contributors)
        after = self.roster.after(self.order, outcome.round, peers)
        self._rosters = [*self._rosters, after][-KEPT_ROSTERS:]

    def share(self, peer: PeerId, round_: int) -> Share | None:
        """None: the peer has to arrive first"""
        known = [roster for roster in self._rosters if roster.round < round_ - self.lag]
        return share_of(self.order, known[-1], peer, round_) if known else None

    def take(self, share: Share, round_: int, count: int) -> list[int]:
        """The next `count` windows of the share."""
        if round_ != self._round:
            self._round, self._used = round_, 0
        windows = share.windows(self._used, count)
        self._used += count
        return windows

    def adopt(self, roster: Roster) -> None:
        """After others' checkpoint: the past is not known, and not needed."""
        self._rosters = [roster]

    def position(self) -> dict[str, Any]:
        """For a checkpoint, JSON values."""
        rosters = [msgspec.to_builtins(roster) for roster in self._rosters]
        return {"rosters": rosters, "round": self._round, "used": self._used, "tokens": self.tokens}

    def restore(self, position: dict[str, Any]) -> None:
        """raises: ValueError for what `position` did not make"""
        try:
            rosters = msgspec.convert(position["rosters"], list[Roster])
            self._round, self._used, self.tokens = (int(position[name]) for name in ("round", "used", "tokens"))
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"not a position in the data: {error}") from error
        if not rosters:
            raise ValueError("a position in the data without a roster")
        self._rosters = rosters


def packed(roster: Roster) -> npt.NDArray[np.uint8]:
    """A roster as an array, for the part of a checkpoint that all replicas share."""
    return np.frombuffer(_roster_encoder.encode(roster), np.uint8)


def unpacked(array: npt.NDArray[np.uint8]) -> Roster:
    """raises: ValueError"""
    try:
        return _roster_decoder.decode(np.asarray(array, np.uint8).tobytes())
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a roster: {error}") from error
