"""A round that was offered and not yet applied, also as plain arrays for a checkpoint."""

from dataclasses import dataclass

import numpy as np

from shoal.compression.update_codec import Values
from shoal.node.training.optimizers.outer import State
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Offer, Outcome


@dataclass(slots=True)
class PendingRound:
    """residual: the sender's error feedback once the offer has arrived; due: the inner step after which it is applied;
    outcome: once it is there."""

    offer: Offer
    residual: Values | None
    due: int
    outcome: Outcome | None = None

    def state(self) -> State:
        offer = self.offer
        state: State = {"round": offer.round, "fragment": offer.fragment, "tokens": offer.tokens, "due": self.due}
        state["state"] = np.frombuffer(offer.state, np.uint8)
        state |= _payloads("payload", offer.payloads)
        if self.residual is not None:
            state["residual"] = self.residual.copy()
        if self.outcome is not None:
            state |= _payloads("aggregate", self.outcome.aggregates)
            contributors = "\n".join(f"{peer} {tokens}" for peer, tokens in self.outcome.contributors)
            state["contributors"] = np.frombuffer(contributors.encode(), np.uint8)
        return state

    @classmethod
    def restored(cls, state: State) -> "PendingRound":
        """raises: ValueError for what is not a state of this"""
        try:
            round_, fragment, tokens, due = (int(state[name]) for name in ("round", "fragment", "tokens", "due"))
            offer = Offer(round_, fragment, _restored("payload", state), tokens, np.asarray(state["state"]).tobytes())
            residual = np.array(state["residual"], np.float32) if "residual" in state else None
            outcome = None
            if "contributors" in state:
                lines = np.asarray(state["contributors"]).tobytes().decode().splitlines()
                named = tuple((PeerId(peer), int(count)) for peer, count in (line.split() for line in lines))
                outcome = Outcome(round_, fragment, _restored("aggregate", state), named)
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"not the state of a pending round: {error!r}") from error
        return cls(offer, residual, due, outcome)


def _payloads(name: str, payloads: tuple[bytes, ...]) -> State:
    return {f"{name}.{index}": np.frombuffer(payload, np.uint8) for index, payload in enumerate(payloads)}


def _restored(name: str, state: State) -> tuple[bytes, ...]:
    count = sum(key.startswith(f"{name}.") for key in state)
    return tuple(np.asarray(state[f"{name}.{index}"], np.uint8).tobytes() for index in range(count))
