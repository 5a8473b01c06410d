"""One peer's side of a training strategy, without a network: when to offer what, and what an outcome does.

After each inner step: `advance`; if a round is due (`must_settle`), `settle` it; if an offer is due (`must_offer`),
`offer`. `outer_loop.OuterLoop` does this over an `Exchange`.

A round that is skipped changes nothing that replicas share, and loses nothing. The local parameters keep what they
learned; as the outer parameters stand still, the next pseudo-gradient of the fragment (outer - local) holds the work of
both rounds, weighted with the tokens of both. A gradient is kept and averaged with the next one. What the encoder left
out is counted as if the lost payload had never been made. So no peer's outer parameters ever move by its own work
alone, and after `patience` lost rounds in a row the loop takes no further inner step before a round succeeds.
"""

from collections.abc import Sequence

import numpy as np

from shoal.compression.update_codec import Values
from shoal.node.training.optimizers.outer import State
from shoal.swarm.rounds.exchange import Offer, Outcome, RunSpec

from .encoding import begun, encoded
from .outer_parameters import OuterParameters, part_of
from .pending_round import PendingRound
from .settings import StrategySettings
from .sync_schedule import SyncSchedule


class Strategy:
    """step: inner steps done; round: the next to be offered; skips: rounds lost in a row.

    undecayed: ranges without weight decay, from `ParameterLayout.undecayed`
    raises: ValueError when settings, run and parameters do not fit together
    """

    def __init__(
        self,
        settings: StrategySettings,
        spec: RunSpec,
        initial: Values,
        undecayed: Sequence[tuple[int, int]] = (),
    ) -> None:
        settings.check()
        if (len(spec.fragments), spec.preset) != (settings.fragments, settings.preset):
            raise ValueError(f"{settings.name} with a run of {len(spec.fragments)} fragments and preset {spec.preset}")
        self.settings = settings
        self.spec = spec
        self.schedule = SyncSchedule.of(settings)
        self.outer = OuterParameters(settings.outer, spec, initial, undecayed)
        self.step = 0
        self.round = 0
        self.skips = 0
        self.pending: PendingRound | None = None
        self._lost: PendingRound | None = None  # the last one that was skipped: others may know its outcome
        self._next_offer = self.schedule.offered_after(0)
        self._tokens = [0] * settings.fragments  # by fragment, those whose work no outcome holds yet
        self._residuals: dict[int, Values] = {}  # by fragment, what the encoder left out
        self._unsent: tuple[Values, int] | None = None  # the mean gradient of skipped rounds, and its tokens

    @property
    def gradients(self) -> bool:
        """Whether the peer offers gradients and takes no inner step of its own."""
        return self.settings.update == "gradient"

    def advance(self, tokens: int) -> None:
        """One inner step (or, with gradients, one backward pass) over this many tokens is done."""
        self.step += 1
        self._tokens = [count + tokens for count in self._tokens]

    @property
    def must_settle(self) -> bool:
        return self.pending is not None and self.step >= self.pending.due

    @property
    def must_offer(self) -> bool:
        return self.pending is None and self.step >= self._next_offer

    def residual(self, fragment: int) -> Values | None:
        """What the encoder has left out so far, (F,); None when nothing was."""
        return self._residuals.get(fragment)

    @property
    def fragment(self) -> int:
        """Whose turn it is in the next round."""
        return self.schedule.fragment(self.round)

    def offer(self, work: Values) -> Offer:
        """work: the next fragment's local parameters, or the gradient; it becomes the pending round.

        raises: ValueError for work that is not finite or of another length, LookupError with a round under way
        """
        if self.pending is not None:
            raise LookupError(f"round {self.pending.offer.round} is not settled yet")
        fragment, tokens = self.fragment, max(1, self._tokens[self.fragment])
        outer = self.outer.fragment(fragment)
        if work.shape != outer.shape or work.dtype != np.float32:
            raise ValueError(f"{work.dtype} {work.shape} for a fragment of {outer.shape}")
        update = self._with_unsent(work, tokens) if self.gradients else self._begun(fragment) - work
        payloads, residual = self._encoded(fragment, update)
        if self.gradients:
            self._unsent = update, tokens  # until it has arrived
        offer = Offer(self.round, fragment, payloads, tokens, self.outer.hash())
        self.pending = PendingRound(offer, residual, self.step + self.settings.delay)
        self._next_offer = self.step + self.schedule.steps_to_next(self.round)
        self.round += 1
        return offer

    def receive(self, outcome: Outcome) -> None:
        """Keeps the outcome of the pending round until it is due. raises: ValueError for another round's"""
        pending = self._pending()
        if (outcome.round, outcome.fragment) != (pending.offer.round, pending.offer.fragment):
            raise ValueError(f"the outcome of round {outcome.round} for an offer of round {pending.offer.round}")
        pending.outcome = outcome

    def settle(self, local: Values) -> Values:
        """Apply the received outcome. local: the fragment's local parameters (with gradients they are not looked at).

        returns: (F,) what the local parameters become
        raises: MalformedPayload and ValueError (nothing has changed then), LookupError before the outcome is there
        """
        pending = self._pending()
        if pending.outcome is None:
            raise LookupError(f"round {pending.offer.round} has no outcome yet")
        fragment = pending.offer.fragment
        self.outer.apply(pending.outcome)
        self.pending, self._lost, self.skips, self._unsent = None, None, 0, None
        self._tokens[fragment] -= min(pending.offer.tokens, self._tokens[fragment])
        if pending.residual is not None:
            self._residuals[fragment] = pending.residual
        outer = self._begun(fragment)
        if self.settings.merge == 0:
            return outer
        merge = np.float32(self.settings.merge)
        return (np.float32(1) - merge) * outer + merge * local

    def beginning(self) -> Values:
        """(N,) what the local parameters are set to by whoever has no work of its own: after `rejoin` or `restore`."""
        return np.concatenate([self._begun(fragment) for fragment in range(self.settings.fragments)])

    def skip(self) -> None:
        """The pending round was lost: nothing is applied, all work goes into the next one."""
        self._lost, self.pending = self._pending(), None
        self.skips += 1

    def hurry(self) -> None:
        """The next offer is due at once, without further inner steps."""
        self._next_offer = self.step

    def align(self, steps: int) -> None:
        """The next offer is due after so many further inner steps: for peers whose steps have one clock."""
        self._next_offer = self.step + steps

    def replay(self, outcome: Outcome, contributed: bool = False) -> None:
        """Apply a round that this peer missed, from the log. Its own unsettled work is given up with it.

        contributed: the outcome holds this peer's offer, so what the encoder left out of it is known
        raises: MalformedPayload, ValueError (nothing has changed then)
        """
        if outcome.fragment != self.schedule.fragment(outcome.round):
            raise ValueError(f"round {outcome.round} is not of fragment {outcome.fragment}")
        self.outer.apply(outcome)
        mine = self.pending or self._lost
        if contributed and mine is not None and mine.offer.round == outcome.round and mine.residual is not None:
            self._residuals[outcome.fragment] = mine.residual
        self.rejoin(max(self.round, outcome.round + 1))

    def rejoin(self, round_: int) -> None:
        """Go on with this round, from the outer parameters: the caller sets the local ones to `beginning`.

        What was learned and not yet sent is lost ("at most the own current round"); the error feedback is kept. The
        count of inner steps is moved to where the group stands when this peer is behind.
        """
        self.pending, self._lost, self._unsent, self.skips = None, None, None, 0
        self.round = round_
        if self.outer.rounds:
            self.step = max(self.step, self.schedule.applied_after(self.outer.rounds - 1))
        gap = self.schedule.steps_to_next(round_ - 1) if round_ else self.schedule.offered_after(0)
        self._next_offer = self.step + max(1, gap - self.settings.delay)
        self._tokens = [0] * self.settings.fragments

    def state(self) -> State:
        """Everything but the local parameters and the inner optimiser, as arrays and numbers.

        Names that begin with `outer.` and their values are the same at all replicas after the same round; the others
        are the peer's own.
        """
        own: State = {"step": self.step, "round": self.round, "skips": self.skips, "next_offer": self._next_offer}
        own |= {f"tokens.{fragment}": tokens for fragment, tokens in enumerate(self._tokens)}
        own |= {f"residual.{fragment}": residual.copy() for fragment, residual in self._residuals.items()}
        if self._unsent is not None:
            own |= {"unsent.values": self._unsent[0].copy(), "unsent.tokens": self._unsent[1]}
        if self.pending is not None:
            own |= {f"pending.{name}": value for name, value in self.pending.state().items()}
        return {f"outer.{name}": value for name, value in self.outer.state().items()} | own

    def restore(self, state: State) -> None:
        """raises: ValueError for the state of another run"""
        numbers = {name: state.get(name) for name in ("step", "round", "skips", "next_offer")}
        tokens = part_of(state, "tokens.")
        residuals = {int(name): np.array(value, np.float32) for name, value in part_of(state, "residual.").items()}
        unsent, pending = part_of(state, "unsent."), part_of(state, "pending.")
        if None in numbers.values() or len(tokens) != self.settings.fragments:
            raise ValueError("not the state of this strategy")
        if any(
            not 0 <= fragment < len(self.outer.bounds) or residual.shape != self.outer.fragment(fragment).shape
            for fragment, residual in residuals.items()
        ):
            raise ValueError("the error feedback of another model")
        restored = PendingRound.restored(pending) if pending else None
        self.outer.restore(part_of(state, "outer."))
        self.step, self.round, self.skips, self._next_offer = (int(value or 0) for value in numbers.values())
        self._tokens = [int(tokens[str(fragment)]) for fragment in range(self.settings.fragments)]
        self._residuals = residuals
        self._unsent = (np.array(unsent["values"], np.float32), int(unsent["tokens"])) if unsent else None
        self.pending, self._lost = restored, None

    def _pending(self) -> PendingRound:
        if self.pending is None:
            raise LookupError("no round is under way")
        return self.pending

    def _begun(self, fragment: int) -> Values:
        return begun(self.outer.fragment(fragment), self.settings.ahead, self._residuals.get(fragment))

    def _with_unsent(self, gradient: Values, tokens: int) -> Values:
        """The mean of this gradient and those of skipped rounds, by tokens."""
        if self._unsent is None:
            return gradient
        unsent, before = self._unsent
        if tokens <= before:
            return unsent  # offered again without a new gradient
        share = np.float32(before / tokens)
        return share * unsent + (np.float32(1) - share) * gradient

    def _encoded(self, fragment: int, update: Values) -> tuple[tuple[bytes, ...], Values | None]:
        return encoded(self.spec, self.settings.feedback, self.round, fragment, update, self._residuals.get(fragment))
