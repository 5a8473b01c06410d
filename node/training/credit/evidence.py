"""What a judge has found about one claim: a line in its file, whose hash stands in the verdict."""

import hashlib

import msgspec


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """draw: hex, the judge's signature over the claim. distances: see `examination`; None where it did not come to that
    own, mean: s of the update and of the round's mean, nats; None without held-out text
    """

    train: str  # hex, hash of the entry
    trainer: str
    round: int
    percent: int
    draw: str
    interval: int
    outcome: str  # sound | false | undecided
    reason: str
    step_distance: float | None = None
    payload_distance: float | None = None
    own: float | None = None
    mean: float | None = None
    quality: int = 0
    tokens: int = 0
    credits: int = 0

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    def digest(self) -> bytes:
        return hashlib.sha256(self.line()).digest()
