"""Trust by walks over receipts: work earns it, rings of invented peers do not."""

import random
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.incentives.standing import CAUGHT_MS, FORKED_MS, STRANGER_MS, Standings
from shoal.incentives.trust import RESTART, AuditRecord, standings
from shoal.swarm.identifiers import PeerId

Graph = dict[PeerId, dict[PeerId, int]]
ME, LIAR = PeerId("me"), PeerId("liar")
HONEST = [PeerId(f"honest {number}") for number in range(40)]


def society(seed: int) -> Graph:
    """Honest peers that serve one another; the later liar serves as much as anybody, and is served."""
    draw = random.Random(seed)
    everybody = [*HONEST, ME, LIAR]
    return {
        client: {server: draw.randrange(1, 1000) for server in draw.sample(everybody, 8) if server != client}
        for client in everybody
    }


def ring(size: int) -> Graph:
    names = [PeerId(f"sybil {number}") for number in range(size)]
    return {LIAR: {names[0]: 10**9}} | {a: {b: 10**9} for a, b in zip(names, [*names[1:], names[0]], strict=True)}


def star(size: int) -> Graph:
    names = [PeerId(f"sybil {number}") for number in range(size)]
    return {LIAR: dict.fromkeys(names, 10**9)} | {name: {LIAR: 10**9} for name in names}


def chain(size: int) -> Graph:
    names = [LIAR, *(PeerId(f"sybil {number}") for number in range(size))]
    return {a: {b: 10**9} for a, b in pairwise(names)}


def of_group(found: Mapping[PeerId, float]) -> float:
    return sum(share for peer, share in found.items() if peer == LIAR or peer.startswith("sybil"))


@pytest.mark.parametrize("size", [10, 50, 400])
@pytest.mark.parametrize("shape", [ring, star, chain])
def test_a_ring_of_sybils_gains_at_most_a_fifth(size: int, shape: Callable[[int], Graph]) -> None:
    for seed in range(5):
        before = society(seed)
        honest = standings(ME, before)[LIAR]
        assert honest > 0
        assert of_group(standings(ME, before | shape(size))) <= 1.2 * honest


edges = st.dictionaries(st.integers(0, 11), st.dictionaries(st.integers(0, 11), st.integers(0, 10**6), max_size=6))


@given(edges, edges)
def test_no_edges_inside_a_group_gain_it_more_than_the_bound(outer: dict[int, dict[int, int]], lies: Graph) -> None:
    """Peers 0 to 5 are honest, 6 is the liar, 7 to 11 are its sybils, to whom no honest edge leads; the view is 0's."""
    name = [PeerId(f"{'honest' if n < 6 else 'liar' if n == 6 else 'sybil'} {n}") for n in range(12)]
    truth = {name[a]: {name[b]: w for b, w in out.items() if b <= 6} for a, out in outer.items() if a <= 6}
    told = {name[a]: {name[b]: w for b, w in out.items()} for a, out in lies.items() if a >= 6}
    honest = standings(name[0], truth).get(name[6], 0.0)
    lying = standings(name[0], {k: v for k, v in truth.items() if k != name[6]} | told)
    group = sum(share for peer, share in lying.items() if peer in name[6:])
    assert group <= honest / RESTART + 1e-6


def walked(me: PeerId, receipts: Graph, steps: int = 7) -> dict[PeerId, float]:
    """The same by hand: every way, step by step."""
    found: dict[PeerId, float] = {}

    def walk(peer: PeerId, share: float, left: int) -> None:
        edges = {other: paid for other, paid in receipts.get(peer, {}).items() if paid and other not in (peer, me)}
        total = sum(edges.values())
        if peer != me:
            stays = RESTART if edges and left else 1.0
            found[peer] = found.get(peer, 0.0) + share * stays
            share *= 1 - stays
        for other, paid in edges.items() if left else ():
            walk(other, share * paid / total, left - 1)

    walk(me, 1.0, steps)
    return {peer: share for peer, share in found.items() if share}


@given(st.dictionaries(st.integers(0, 5), st.dictionaries(st.integers(0, 5), st.integers(0, 9), max_size=3)))
def test_standings_are_the_shares_of_walks_taken_one_by_one(drawn: dict[int, dict[int, int]]) -> None:
    graph = {PeerId(str(a)): {PeerId(str(b)): weight for b, weight in out.items()} for a, out in drawn.items()}
    found = standings(PeerId("0"), graph)
    assert found == pytest.approx(walked(PeerId("0"), graph), abs=1e-9)


def test_work_in_a_second_degree_is_seen_and_weighs_less_than_ones_own_experience() -> None:
    far, near = PeerId("far"), PeerId("near")
    found = standings(ME, {ME: {near: 10}, near: {far: 10}})
    assert found[near] > found[far] > 0.1
    assert sum(found.values()) == pytest.approx(1.0)


def test_an_audit_that_failed_takes_more_standing_than_twenty_sound_ones_give() -> None:
    graph = {ME: {HONEST[0]: 100, HONEST[1]: 100}}
    found = standings(ME, graph, {HONEST[1]: AuditRecord(sound=20, false=1)})
    assert found[HONEST[1]] < 0.6 * found[HONEST[0]]
    worse = standings(ME, graph, {HONEST[1]: AuditRecord(sound=0, false=3)})
    assert worse[HONEST[1]] < 0.1


def test_nobody_goes_through_a_forger() -> None:
    graph = {ME: {LIAR: 100, HONEST[0]: 1}, LIAR: {HONEST[1]: 100}}
    assert set(standings(ME, graph, forked={LIAR})) == {HONEST[0]}


def test_who_has_no_receipts_yet_finds_all_alike() -> None:
    assert standings(ME, {HONEST[0]: {HONEST[1]: 5}}) == {}
    assert Standings().cost_ms(HONEST[0]) == 0.0


def test_routing_pays_more_for_strangers_and_much_more_for_cheats() -> None:
    graph = {ME: {HONEST[0]: 100, HONEST[1]: 100}}
    view = Standings.seen_by(ME, graph, {HONEST[1]: AuditRecord(0, 5)}, {LIAR})
    good, caught, stranger, forger = (view.cost_ms(p) for p in (HONEST[0], HONEST[1], HONEST[2], LIAR))
    assert 0 < good < stranger == STRANGER_MS < caught < forger == FORKED_MS
    assert caught <= STRANGER_MS + CAUGHT_MS
    assert view.of(HONEST[0]) > 0.5 > view.of(HONEST[1])
