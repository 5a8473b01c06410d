"""What a lossy update left out, carried into the next one.

After every exchange sent + residual == decay * previous residual + update, up to one float32 rounding of the
subtraction; nothing that training computed is lost, it only arrives later.
source: Karimireddy et al., Error Feedback Fixes SignSGD, arXiv:1901.09847
"""

from dataclasses import dataclass

import numpy as np

from .sparse_codec import SparseCodec
from .sparse_update import SparseUpdate
from .update_codec import Codec, Values


@dataclass(frozen=True, slots=True, eq=False)
class ErrorFeedback:
    """residual: (N,) float32; decay: how much of it is carried on, 1 keeps all (SparseLoCo uses .95)."""

    residual: Values
    decay: float = 1.0

    @classmethod
    def empty(cls, count: int, decay: float = 1.0) -> "ErrorFeedback":
        return cls(np.zeros(count, np.float32), decay)

    def target(self, update: Values) -> Values:
        """What ought to be sent now."""
        return np.float32(self.decay) * self.residual + update

    def after(self, target: Values, sent: Values) -> "ErrorFeedback":
        return ErrorFeedback(target - sent, self.decay)


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """payload: the bytes; update: what every receiver decodes from them; feedback: to be used next time."""

    payload: bytes
    update: Values | SparseUpdate
    feedback: ErrorFeedback

    @property
    def values(self) -> Values:
        return self.update.dense() if isinstance(self.update, SparseUpdate) else self.update


def send(codec: Codec, feedback: ErrorFeedback, update: Values, seed: int = 0) -> Sent:
    """Encode an update together with what earlier ones left out.

    raises: ValueError for values that are not finite
    """
    target = feedback.target(update)
    payload = codec.encode(target, seed)
    if isinstance(codec, SparseCodec):
        sent = codec.decode_sparse(payload, len(target), seed)
        target[sent.at] -= sent.values  # elsewhere it is what is left out
        return Sent(payload, sent, ErrorFeedback(target, feedback.decay))
    values = codec.decode(payload, len(target), seed)
    return Sent(payload, values, feedback.after(target, values))
