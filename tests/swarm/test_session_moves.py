"""The session's machine where standbys and successors come in: what it asks for, and in which order it believes."""

from collections.abc import Iterable
from typing import Any

import pytest

from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.compute import Choice
from shoal.swarm.sessions.generation import Exactness
from shoal.swarm.sessions.session import Session
from shoal.swarm.sessions.session_events import (
    AdoptUpstream,
    CacheCame,
    CacheFailed,
    CacheKept,
    CloseHop,
    Event,
    HandOver,
    HopHanded,
    HopLeaves,
    HopLost,
    HopOpened,
    KeepOn,
    OpenHold,
    OpenHop,
    PeerSought,
    Plan,
    Planned,
    PrepareLink,
    ProgressCame,
    PromoteHold,
    Repaired,
    Restore,
    RewireHop,
    SeekPeer,
    SendSnapshots,
    TellStranded,
    Ticked,
    TokenCame,
)
from shoal.swarm.sessions.session_hop import Patience
from shoal.swarm.units import Span

A, B, C, S, T = (PeerId(name) for name in "ABCST")
SPANS = (Span(0, 3), Span(3, 5), Span(5, 8))
PROMPT = tuple(range(200))


class Running:
    """A session over A, B and C with its first token. `now` goes on by a millisecond with each event."""

    def __init__(self, exactness: Exactness = "exact", *, keep_snapshots: bool = False) -> None:
        self.session = Session(
            PROMPT, Span(0, 8), 100, frozenset(), frozenset(), Patience(), 8, exactness, keep_snapshots
        )
        self.now = 0.0
        list(self.session.start())
        self.say(Planned(1, tuple(zip((A, B, C), SPANS, strict=True))))
        for key in (1, 2, 3):
            self.say(HopOpened(key))

    def say(self, event: Event) -> list[Any]:
        self.now += 0.001
        return list(self.session.handle(event, self.now))

    def token(self) -> list[Any]:
        return self.say(TokenCame(len(self.session.ids), Choice(7, 0.0)))

    def with_standby_of_b(self) -> int:
        """returns: the key of the hold"""
        self.token()
        (hold,) = of(self.say(PeerSought(2, S)), OpenHold)
        assert (hold.peer, hold.sender) == (S, 2)
        assert of(self.say(HopOpened(hold.hold)), SendSnapshots) == [SendSnapshots(2, hold.hold)]
        return int(hold.hold)


def of(effects: Iterable[Any], kind: type) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_standbys_are_sought_after_the_first_token_and_never_among_the_chain() -> None:
    running = Running()
    seeks = of(running.token(), SeekPeer)
    assert [seek.hop for seek in seeks] == [1, 2, 3]
    assert all({A, B, C} <= seek.exclude for seek in seeks)
    assert [(seek.before, seek.after) for seek in seeks] == [(None, B), (A, C), (B, None)]
    assert not of(running.token(), SeekPeer), "once is enough while an answer is out"


def test_a_session_that_wants_to_replay_seeks_none() -> None:
    assert not of(Running("replay").token(), SeekPeer)


def test_a_standby_is_promoted_and_fed_at_once_from_what_it_has_said_that_it_keeps() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    running.say(CacheKept(hold, 192))
    effects = running.say(HopLost(2, "gone"))
    assert not of(effects, Plan), "who stands ready need not be looked for"
    below = len(PROMPT)  # C has computed as far as the last token shows
    assert of(effects, PromoteHold) == [PromoteHold(hold, S, SPANS[1], A, 3, below)]
    assert of(effects, AdoptUpstream) == [AdoptUpstream(3, S)]
    assert of(effects, RewireHop) == [RewireHop(1, hold, 192)]
    assert not of(running.say(CacheCame(hold, 192)), RewireHop)
    (repaired,) = of(running.token(), Repaired)
    assert (repaired.loaded, repaired.planned, repaired.replaced_by) == (192, False, (S,))


@pytest.mark.parametrize(("said", "held", "again"), [(128, 192, []), (192, 128, [RewireHop(1, 4, 128)])])
def test_a_promoted_standby_that_has_less_than_it_said_is_fed_again(said: int, held: int, again: list[Any]) -> None:
    running = Running()
    hold = running.with_standby_of_b()
    assert hold == 4
    running.say(CacheKept(hold, said))
    assert of(running.say(HopLost(2, "gone")), RewireHop) == [RewireHop(1, hold, said)]
    assert of(running.say(CacheCame(hold, held)), RewireHop) == again


def test_no_more_is_taken_from_a_standby_than_the_next_hop_has() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    running.say(CacheKept(hold, 192))
    running.session.hops[2].held = 100
    effects = running.say(HopLost(2, "gone"))
    assert of(effects, PromoteHold)[0].below == 100
    assert of(effects, RewireHop) == [RewireHop(1, hold, 64)]


def test_a_hop_lost_while_the_one_behind_it_loads_too_little_has_the_chain_opened_anew() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    running.say(CacheKept(hold, 192))
    running.say(HopLost(2, "gone"))
    (plan,) = of(running.say(HopLost(1, "gone too")), Plan)
    assert plan.span == SPANS[0]
    (plan,) = of(running.say(CacheCame(hold, 128)), Plan)
    assert plan.span == Span(0, 8)


def test_links_around_a_standby_are_open_before_they_are_needed_and_again_when_its_neighbours_change() -> None:
    running = Running()
    running.token()
    (of_b,) = of(running.say(PeerSought(2, S)), OpenHold)
    effects = running.say(HopOpened(of_b.hold))
    assert of(effects, PrepareLink) == [PrepareLink(1, of_b.hold), PrepareLink(of_b.hold, 3)]
    (of_a,) = of(running.say(PeerSought(1, T)), OpenHold)
    effects = running.say(HopOpened(of_a.hold))
    assert PrepareLink(None, of_a.hold) in effects
    assert PrepareLink(of_a.hold, 2) in effects
    assert PrepareLink(of_a.hold, of_b.hold) in running.say(HopLost(2, "gone")), "it would push to S now"


def test_a_token_that_its_predecessor_passed_on_is_not_held_by_a_standby_that_has_just_been_promoted() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    running.token()
    (of_a,) = of(running.say(PeerSought(1, T)), OpenHold)
    running.say(HopOpened(of_a.hold))
    running.say(CacheKept(of_a.hold, 192))
    running.say(CacheKept(hold, 64))
    running.say(HopLost(2, "gone"))
    running.token()  # B had passed its input on
    (promoted,) = of(running.say(HopLost(1, "gone too")), PromoteHold)
    assert promoted.below == 64, "the one behind would lack the positions from there on"


@pytest.mark.parametrize("held", [-1, len(PROMPT) + 1, 1 << 40])
def test_a_promoted_standby_that_claims_what_it_cannot_hold_is_lost_and_another_planned(held: int) -> None:
    running = Running()
    hold = running.with_standby_of_b()
    running.say(CacheKept(hold, held))
    (rewired,) = of(running.say(HopLost(2, "gone")), RewireHop)
    assert 0 <= rewired.start <= len(PROMPT)
    effects = running.say(CacheCame(hold, held))
    assert not of(effects, RewireHop)
    assert CloseHop(hold) in effects
    (plan,) = of(effects, Plan)
    assert plan.span == SPANS[1]
    assert S in plan.exclude


@pytest.mark.parametrize("held", [-1, len(PROMPT) + 1, 1 << 40])
def test_a_replacement_that_claims_what_it_cannot_hold_is_lost_and_another_planned_without_the_snapshot(
    held: int,
) -> None:
    running = Running(keep_snapshots=True)
    running.token()
    (plan,) = of(running.say(HopLost(2, "gone")), Plan)
    (opened,) = of(running.say(Planned(plan.number, ((S, SPANS[1]),))), OpenHop)
    assert opened.restore is not None
    running.say(HopOpened(opened.hop))
    effects = running.say(CacheCame(opened.hop, held))
    assert not of(effects, RewireHop)
    assert CloseHop(opened.hop) in effects
    (plan,) = of(effects, Plan)
    assert S in plan.exclude
    assert running.session.phase == "planning"


def test_the_last_position_is_always_computed_again_and_none_that_the_next_hop_lacks_is_skipped() -> None:
    running = Running()
    running.say(ProgressCame(3, 90))
    running.session._gap = 1  # noqa: SLF001
    running.session.hops.pop(1)
    assert running.session._loadable() == 90  # noqa: SLF001
    running.session.hops.pop(1)
    assert running.session._loadable() == len(PROMPT) - 1  # noqa: SLF001


def test_a_standby_that_dies_while_it_loads_leaves_the_second_rung() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    running.say(HopLost(2, "gone"))
    effects = running.say(HopLost(hold, "gone too"))
    assert CloseHop(hold) in effects
    (plan,) = of(effects, Plan)
    assert plan.span == SPANS[1], "the chain is kept"
    assert {B, S} <= plan.exclude
    (opened,) = of(running.say(Planned(plan.number, ((T, SPANS[1]),))), OpenHop)
    assert opened.restore is None
    assert of(running.say(HopOpened(opened.hop)), RewireHop) == [RewireHop(1, opened.hop, 0)]


def test_a_lost_standby_is_replaced_a_while_later_and_the_chain_does_not_notice() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    assert of(running.say(HopLost(hold, "gone")), CloseHop) == [CloseHop(hold)]
    assert running.session.phase == "running"
    assert not running.session.exclude
    running.now += Patience().standby_retry_s
    (seek,) = [seek for seek in of(running.token(), SeekPeer) if seek.hop == 2]
    assert S in seek.exclude


def moving(running: Running) -> int:
    """B leaves, S is to take its place. returns: the key of the successor"""
    running.token()
    (seek,) = of(running.say(HopLeaves(2, 60.0)), SeekPeer)
    assert {A, B, C} <= seek.exclude
    (opened,) = of(running.say(PeerSought(2, S)), OpenHop)
    assert opened.restore == Restore(B)
    assert (opened.upstream, opened.downstream) == (A, 3)
    assert of(running.say(HopOpened(opened.hop)), HandOver) == [HandOver(2, opened.hop)]
    return int(opened.hop)


@pytest.mark.parametrize("handed_first", [True, False])
def test_the_chain_is_rewired_when_both_sides_have_said_that_all_is_over(handed_first: bool) -> None:
    running = Running("replay")
    successor = moving(running)
    running.token()  # the leaving hop works on
    events: list[Event] = [HopHanded(2, 202), CacheCame(successor, 202)]
    first, second = events if handed_first else reversed(events)
    assert not of(running.say(first), RewireHop)
    effects = running.say(second)
    assert of(effects, AdoptUpstream) == [AdoptUpstream(3, S)]
    assert of(effects, RewireHop) == [RewireHop(1, successor, 202)]
    assert CloseHop(2) in effects
    assert [hop.peer for hop in running.session.hops] == [A, S, C]
    (moved,) = of(running.token(), Repaired)
    assert moved.planned
    assert moved.loaded == 202
    assert not running.session.exclude


def test_a_successor_that_fails_sends_the_leaver_back_to_work_and_another_is_sought() -> None:
    running = Running("replay")
    successor = moving(running)
    running.say(HopHanded(2, 201))
    effects = running.say(HopLost(successor, "gone"))
    assert KeepOn(2) in effects
    (seek,) = of(effects, SeekPeer)
    assert S in seek.exclude
    assert running.session.phase == "running"
    assert [hop.peer for hop in running.session.hops] == [A, B, C]
    assert not of(running.say(CacheCame(successor, 201)), RewireHop), "too late"


@pytest.mark.parametrize("held", [-1, len(PROMPT) + 2])
def test_a_successor_that_claims_what_it_cannot_hold_is_not_rewired_to(held: int) -> None:
    running = Running("replay")
    successor = moving(running)
    running.say(HopHanded(2, 201))
    effects = running.say(CacheCame(successor, held))
    assert not of(effects, RewireHop)
    assert KeepOn(2) in effects
    (seek,) = of(effects, SeekPeer)
    assert S in seek.exclude


def test_a_move_ends_when_a_neighbour_is_lost_and_begins_anew_when_that_is_repaired() -> None:
    running = Running("replay")
    successor = moving(running)
    effects = running.say(HopLost(1, "gone"))
    assert KeepOn(2) in effects
    assert CloseHop(successor) in effects
    (plan,) = of(effects, Plan)
    (opened,) = of(running.say(Planned(plan.number, ((T, SPANS[0]),))), OpenHop)
    running.say(HopOpened(opened.hop))
    assert [seek.hop for seek in of(running.token(), SeekPeer)] == [2]


def test_a_move_that_takes_too_long_is_given_up() -> None:
    running = Running("replay")
    successor = moving(running)
    running.token()
    running.now += Patience().prefill_s
    running.session._watch.waiting_since_s = running.now  # noqa: SLF001  tokens have come all the while
    running.session._watch.deadline_s = running.now + 30.0  # noqa: SLF001
    running.session._watch._wake_s = running.now + 0.001  # noqa: SLF001
    effects = running.say(Ticked())
    assert CloseHop(successor) in effects
    assert KeepOn(2) in effects


def test_a_cache_that_cannot_be_moved_is_computed_again_by_another() -> None:
    running = Running("replay")
    successor = moving(running)
    effects = running.say(CacheFailed(2, successor, "no memory"))
    assert {CloseHop(2), CloseHop(successor)} <= set(of(effects, CloseHop))
    assert of(effects, Plan)


def test_who_finds_no_successor_is_told_and_the_search_ends_after_a_few_tries_or_at_once_for_the_hurried() -> None:
    running = Running("replay")
    running.token()
    effects = running.say(HopLeaves(2, 60.0))
    tries = 0
    while of(effects, SeekPeer):
        tries += 1
        effects = running.say(PeerSought(2, None, "nobody"))
        assert of(effects, TellStranded) == [TellStranded(2, "nobody")]
    assert tries == Patience().successor_tries
    assert not of(running.token(), SeekPeer)
    running.say(HopLeaves(3, 5.0))
    assert of(running.say(PeerSought(3, None, "nobody")), TellStranded) == [TellStranded(3, "nobody")]


def test_all_is_closed_at_the_end() -> None:
    running = Running()
    hold = running.with_standby_of_b()
    effects = running.say(HopLeaves(3, 60.0))
    (opened,) = of(running.say(PeerSought(3, T)), OpenHop)
    running.session.max_new = len(running.session.ids) - len(PROMPT) + 1
    effects = running.token()
    assert {1, 2, 3, hold, opened.hop} <= {closed.hop for closed in of(effects, CloseHop)}
