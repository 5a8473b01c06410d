"""A node whose store was restored from a backup asks for its own entries before it signs; real SQLite files."""

import random
import shutil
from pathlib import Path

from incentives.chains import NOW_S, continued, opening
from swarm.people import person

from shoal.incentives import entry as entries
from shoal.incentives.chain import Accepted, Forked
from shoal.incentives.entry import Entry
from shoal.incentives.gossip_messages import EntriesWanted, Page
from shoal.incentives.ledger_answers import LedgerAnswers
from shoal.incentives.own_head import AGAIN_S, AskForOwn, OwnHead
from shoal.incentives.store import Store
from shoal.swarm.identifiers import PeerId

ME = person(1)
OTHERS = [person(number).peer_id for number in range(2, 6)]


def settle(head: OwnHead, holders: dict[PeerId, Store], now: float = NOW_S) -> None:
    """All that are asked answer, or are not there."""
    asks: list[AskForOwn] = list(head.listed(OTHERS, now))
    while asks:
        ask = asks.pop(0)
        if ask.peer in holders:
            page = LedgerAnswers(holders[ask.peer], {}).page(ME.peer_id, ask.question, now)
            asks += head.answered(ask.peer, page, now)
        else:
            head.unanswered(ask.peer, now)


def others_with(chain: list[Entry], number: int = len(OTHERS)) -> dict[PeerId, Store]:
    holders = {peer: Store(None) for peer in OTHERS}
    for peer in OTHERS[:number]:
        holders[peer].receive_all(chain, NOW_S)
    return holders


def write(store: Store, number: int, first: int = 0) -> None:
    store.append_own(ME, [opening(first + each) for each in range(number)], NOW_S)


def restored(folder: Path, before: int, after: int) -> tuple[Store, list[Entry]]:
    """A store as the backup has it, and all that was signed: `before` entries that are in it, `after` that came later.

    The database file is copied while the node runs, with its write-ahead log, as a backup program does.
    """
    folder.mkdir()
    live = Store(folder / "ledger.sqlite")
    write(live, before)
    backup = folder / "backup"
    backup.mkdir()
    for file in folder.glob("ledger.sqlite*"):
        shutil.copy(file, backup / file.name)
    write(live, after, first=before)
    signed = live.of(ME.public_key)
    live.close()
    for file in folder.glob("ledger.sqlite*"):
        file.unlink()
    for file in backup.iterdir():
        shutil.copy(file, folder / file.name)
    return Store(folder / "ledger.sqlite"), signed


def test_without_asking_a_restored_backup_forks_its_own_chain(tmp_path: Path) -> None:
    """What all of this is for."""
    store, signed = restored(tmp_path / "node", 3, 2)
    write(store, 1, first=50)
    (verdict,) = others_with(signed)[OTHERS[0]].receive_all(store.of(ME.public_key)[-1:], NOW_S)
    assert isinstance(verdict, Forked)
    store.close()


def test_a_restored_backup_takes_back_what_it_had_signed_and_goes_on_from_there(tmp_path: Path) -> None:
    store, signed = restored(tmp_path / "node", 3, 2)
    assert store.chain(ME.public_key).length == 3
    head = OwnHead(ME.public_key, store, random.Random(1))
    assert not head.may_sign
    holders = others_with(signed, number=1)  # one of four has them
    settle(head, holders)
    assert head.may_sign
    assert head.adopted == 2
    assert store.of(ME.public_key) == signed
    write(store, 1, first=50)
    mine = store.of(ME.public_key)
    assert all(isinstance(v, Accepted) for v in holders[OTHERS[0]].receive_all(mine[-1:], NOW_S))
    store.close()
    again = Store(tmp_path / "node" / "ledger.sqlite")
    assert again.of(ME.public_key) == mine
    assert not again.drifted
    again.close()


def test_a_lost_store_comes_back_whole(tmp_path: Path) -> None:
    _, signed = restored(tmp_path / "node", 0, 600)
    store = Store(tmp_path / "new.sqlite")
    head = OwnHead(ME.public_key, store, random.Random(1))
    settle(head, others_with(signed, number=1))
    assert head.may_sign
    assert store.of(ME.public_key) == signed
    store.close()


def test_nobody_signs_before_enough_have_answered() -> None:
    head = OwnHead(ME.public_key, Store(None), random.Random(1))
    assert not head.may_sign
    settle(head, dict(list(others_with([]).items())[:2]))
    assert not head.may_sign
    assert list(head.ticked(NOW_S + 1)) == []
    late = list(head.ticked(NOW_S + AGAIN_S + 1))
    assert {ask.peer for ask in late} == set(OTHERS[2:])
    for ask in late:
        list(head.answered(ask.peer, Page(0, ()), NOW_S + AGAIN_S + 1))
    assert head.may_sign


def test_members_without_a_ledger_are_not_waited_for() -> None:
    head = OwnHead(ME.public_key, Store(None), random.Random(1))
    *without, knowing = (ask.peer for ask in head.listed(OTHERS, NOW_S))
    for peer in without:
        head.unanswered(peer, NOW_S, keeps_none=True)
    assert not head.may_sign
    list(head.answered(knowing, Page(0, ()), NOW_S))
    assert head.may_sign


def test_nobody_signs_among_members_without_a_ledger() -> None:
    """Whoever knows more may only be away."""
    head = OwnHead(ME.public_key, Store(None), random.Random(1))
    for ask in list(head.listed(OTHERS, NOW_S)):
        head.unanswered(ask.peer, NOW_S, keeps_none=True)
    assert not head.may_sign
    asks = list(head.listed(OTHERS, NOW_S + AGAIN_S + 1))
    assert {ask.peer for ask in asks} == set(OTHERS)  # one may have been started with a ledger since
    assert not head.may_sign


def test_one_that_never_answered_and_left_holds_nobody_up() -> None:
    head = OwnHead(ME.public_key, Store(None), random.Random(1))
    few = OTHERS[:3]
    for ask in list(head.listed(few, NOW_S)):
        if ask.peer == few[0]:
            head.unanswered(ask.peer, NOW_S)
        else:
            list(head.answered(ask.peer, Page(0, ()), NOW_S))
    assert not head.may_sign
    list(head.listed(few[1:], NOW_S + 1))
    assert head.may_sign


def test_nobody_signs_while_one_that_was_asked_may_still_know_more() -> None:
    store = Store(None)
    head = OwnHead(ME.public_key, store, random.Random(1))
    asks = list(head.listed(OTHERS, NOW_S))
    for ask in asks[:-1]:
        list(head.answered(ask.peer, Page(0, ()), NOW_S))
    assert not head.may_sign
    chain = continued(ME, [], 2)
    list(head.answered(asks[-1].peer, Page(2, tuple(entries.encode(entry) for entry in chain)), NOW_S))
    assert head.may_sign
    assert store.chain(ME.public_key).length == 2


def test_a_node_that_is_alone_may_sign() -> None:
    head = OwnHead(ME.public_key, Store(None), random.Random(1))
    assert list(head.listed([ME.peer_id], NOW_S)) == []
    assert head.may_sign


def test_who_shows_another_branch_of_our_own_chain_ends_our_signing() -> None:
    store = Store(None)
    write(store, 3)
    thief = continued(ME, store.of(ME.public_key)[:2], 2, 70)
    head = OwnHead(ME.public_key, store, random.Random(1))
    settle(head, others_with(thief, number=1))
    assert head.forked is not None
    assert not head.may_sign


def test_a_liar_cannot_add_to_our_chain_or_hold_us_up_for_ever() -> None:
    store = Store(None)
    write(store, 1)
    head = OwnHead(ME.public_key, store, random.Random(1))
    foreign = tuple(entries.encode(entry) for entry in continued(person(9), [], 3))
    lies = [Page(9, ()), Page(9, foreign), Page(3, (b"rubbish",)), Page(1, ())]
    for ask, lie in zip(list(head.listed(OTHERS, NOW_S)), lies, strict=True):
        assert isinstance(ask.question, EntriesWanted)
        list(head.answered(ask.peer, lie, NOW_S))
    assert store.chain(ME.public_key).length == 1
    assert not head.may_sign  # two answers are worth nothing
    for ask in list(head.ticked(NOW_S + AGAIN_S + 1)):
        list(head.answered(ask.peer, Page(1, ()), NOW_S + AGAIN_S + 1))
    assert head.may_sign
