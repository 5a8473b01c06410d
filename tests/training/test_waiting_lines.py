"""What a person hears of peers that are missing: nothing of a moment, and no more than is so."""

import pytest
from training.local_exchange import peers

from shoal.node.training import events
from shoal.node.training.worker_exchange import AttentiveExchange
from shoal.node.training.worker_rounds import TELL_AFTER_S, FactTeller
from shoal.swarm.rounds.events import Status
from shoal.swarm.rounds.exchange import Exchange, Offer, Outcome, OutOfStep, RoundSkipped

ANA, _ = peers(2)
LINE = "waiting for peers: 1 of at least 2 are ready"


class Listener:
    """A teller with a clock that stands where it is put; told: the lines, "" for going on."""

    def __init__(self) -> None:
        self.now, self.told = 0.0, list[str]()
        self.teller = FactTeller(self._hear, lambda: self.now)

    def _hear(self, event: events.TrainingEvent) -> None:
        assert isinstance(event, events.Waiting)
        self.told.append(event.reason)

    def gathers(self, now: float, round_: int, ready: int = 1) -> None:
        self.now = now
        self.teller.tell(Status(round_, "gathering", ready, 2, LINE))


def test_peers_that_are_missing_for_a_moment_are_not_worth_a_line() -> None:
    ear = Listener()
    ear.gathers(0.0, 7)
    ear.gathers(TELL_AFTER_S - 0.1, 7)
    ear.gathers(TELL_AFTER_S + 0.1, 7, ready=2)
    assert ear.told == []


def test_a_round_that_came_about_ends_the_waiting_and_the_next_one_counts_anew() -> None:
    ear = Listener()
    ear.gathers(0.0, 7)
    ear.gathers(TELL_AFTER_S, 7)
    assert ear.told == [f"{LINE}; Ctrl-C stops"]
    ear.teller.exchange_ended()
    assert ear.told[1:] == [""]
    assert not ear.teller.lacks_peers()
    ear.gathers(60.0, 8)
    assert ear.told[2:] == []
    ear.gathers(60.0 + TELL_AFTER_S, 8)
    assert ear.told[2:] == [f"{LINE}; Ctrl-C stops"]


class Answering:
    def __init__(self, answer: Outcome | Exception) -> None:
        self._answer = answer

    async def exchange(self, offer: Offer) -> Outcome:
        del offer
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def _nobody() -> OutOfStep | None:
    return None


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [Outcome(3, 0, (b"",), ((ANA, 1),)), RoundSkipped("no quorum")])
async def test_an_exchange_is_said_to_be_over_whatever_came_of_it(answer: Outcome | Exception) -> None:
    ended: list[bool] = []
    inner: Exchange = Answering(answer)
    exchange = AttentiveExchange(inner, lambda: False, _nobody, lambda: ended.append(True))
    try:
        await exchange.exchange(Offer(3, 0, (b"",), 1, bytes(32)))
    except RoundSkipped:
        assert isinstance(answer, RoundSkipped)
    assert ended == [True]
