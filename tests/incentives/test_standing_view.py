"""Standing from the entries that a node has."""

from itertools import count

from shoal.incentives import entry as entries
from shoal.incentives.bodies import WORD_BYTES, AnyBody, Close, Open, Verdict
from shoal.incentives.chain import fork_proof
from shoal.incentives.entry import Entry
from shoal.incentives.payword import PayWords
from shoal.incentives.standing import AVOIDED_MS, FALSE_WORK, FORKED_MS, SHOWS_NO_WORK
from shoal.incentives.standing_view import view_of
from shoal.incentives.store import Store
from shoal.swarm.identity import Identity

NOW = 1_790_000_000
ME, GOOD, BAD, STRANGER = (Identity(bytes([number]) * 32) for number in range(1, 5))
names = count()


def append(store: Store, author: Identity, *bodies: AnyBody) -> list[Entry]:
    return store.append_own(author, list(bodies), NOW)


def served(store: Store, client: Identity, server: Identity, ticks: int, told: int | None = None) -> None:
    """told: ticks that the server claims, when it lies"""
    words = PayWords(next(names).to_bytes(WORD_BYTES, "big"), 64)
    (opened,) = append(store, client, Open(server.public_key, b"s", words.root, 10, 32, 64, 3600, 1))
    append(store, server, Close(entries.hash_of(opened), told or ticks, words.word(ticks)))


def test_whoever_served_the_own_peer_or_its_servers_stands_before_a_stranger() -> None:
    store = Store(None)
    served(store, ME, GOOD, 10)
    served(store, GOOD, BAD, 10)
    view = view_of(ME.public_key, store)
    assert view.of(GOOD.peer_id) > view.of(BAD.peer_id) > view.of(STRANGER.peer_id) == 0
    assert view.cost_ms(GOOD.peer_id) < view.cost_ms(BAD.peer_id) < view.cost_ms(STRANGER.peer_id)


def test_a_server_that_claims_more_than_it_has_words_for_has_no_edge() -> None:
    store = Store(None)
    served(store, ME, GOOD, 10)
    served(store, ME, BAD, 1, told=60)
    assert view_of(ME.public_key, store).of(BAD.peer_id) == 0


def test_paying_oneself_and_settling_for_others_makes_no_edge() -> None:
    store = Store(None)
    served(store, ME, ME, 10)
    words = PayWords(bytes(WORD_BYTES), 64)
    (opened,) = append(store, ME, Open(GOOD.public_key, b"s", words.root, 10, 32, 64, 3600, 1))
    append(store, BAD, Close(entries.hash_of(opened), 4, words.word(4)))
    assert view_of(ME.public_key, store).shares == {}


def test_own_verdicts_weigh_and_those_of_others_do_not() -> None:
    store = Store(None)
    for server in (GOOD, BAD):
        served(store, ME, server, 10)
    append(store, BAD, Verdict(GOOD.public_key, 0, bytes(32), 1, bytes(32)))
    view = view_of(ME.public_key, store)
    assert view.of(GOOD.peer_id) == view.of(BAD.peer_id)
    append(store, ME, Verdict(BAD.public_key, 0, bytes(32), 1, bytes(32)))
    view = view_of(ME.public_key, store)
    assert view.shares[BAD.peer_id] < 0.2 * view.shares[GOOD.peer_id]


def test_a_forger_is_the_last_choice() -> None:
    store, other = Store(None), Store(None)
    served(store, ME, BAD, 10)
    (first,) = append(other, BAD, Verdict(GOOD.public_key, 0, bytes(32), 0, bytes(32)))
    second = store.of(BAD.public_key)[0]
    append(store, ME, fork_proof(first, second))
    assert view_of(ME.public_key, store).cost_ms(BAD.peer_id) == FORKED_MS


def test_each_who_is_avoided_is_called_what_it_is() -> None:
    store = Store(None, judges=frozenset({GOOD.public_key}))
    served(store, ME, BAD, 10)
    view = view_of(ME.public_key, store, avoided={BAD.public_key: SHOWS_NO_WORK})
    assert (view.remark(BAD.peer_id), view.shown(BAD.peer_id)) == (SHOWS_NO_WORK, 0.0)
    assert view.cost_ms(BAD.peer_id) == AVOIDED_MS
    append(store, GOOD, Verdict(BAD.public_key, 0, bytes(32), 1, bytes(32)))
    view = view_of(ME.public_key, store, NOW, {BAD.public_key: SHOWS_NO_WORK})
    assert view.remark(BAD.peer_id) == FALSE_WORK, "a verdict that binds says more"
