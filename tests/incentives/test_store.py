"""Entries and balances on the disk: what was taken stays, what is rebuilt is equal, nothing is created from nothing."""

import random
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest

from shoal.incentives import entry as entries
from shoal.incentives.account import Account
from shoal.incentives.balances import Balances
from shoal.incentives.bodies import Ack, Branch, Close, ForkProof, Open, Train, Verdict
from shoal.incentives.chain import Accepted, Forked, Refused
from shoal.incentives.entry import NO_HASH, Entry
from shoal.incentives.payword import PayWords
from shoal.incentives.store import Owed, Store
from shoal.swarm.errors import LocalFault, ShoalError, UsageError
from shoal.swarm.identity import Identity

NOW = 1_790_000_000
CLIENT, SERVER, OTHER = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
WORDS = PayWords(bytes(16), 100)


def opened(price: int = 100, ticks: int = 10, server: Identity = SERVER, session: bytes = b"s") -> Open:
    return Open(server.public_key, session, WORDS.root, price, 32, ticks, 3600, 1)


def closed(open_entry: Entry, ticks: int) -> Close:
    return Close(entries.hash_of(open_entry), ticks, WORDS.word(ticks))


@pytest.fixture
def store() -> Store:
    made = Store(None)
    give(made, CLIENT, 5000)
    return made


def give(store: Store, who: Identity, amount: int) -> None:
    store.balances.mint(who.public_key, amount, bytes(32), NOW - 25 * 3600)
    list(store.balances.advance(who.public_key, NOW))


def account(store: Store, who: Identity) -> Account:
    return store.balances.account(who.public_key)


def test_a_session_reserves_pays_burns_five_percent_and_vests(store: Store) -> None:
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    had = account(store, CLIENT).spendable
    assert account(store, CLIENT).reserved == 1000
    store.append_own(SERVER, [closed(open_entry, 7)], NOW + 60)
    assert account(store, CLIENT).reserved == 0
    assert account(store, CLIENT).spendable == had + 300
    assert account(store, SERVER).waiting == 665
    assert account(store, SERVER).spendable == 0
    assert store.balances.totals.burned == 35
    assert store.balances.imbalance() == 0
    list(store.balances.advance(SERVER.public_key, NOW + 60 + 30 * 86_400))
    assert account(store, SERVER).spendable == 0, "nothing was earned after it"


def test_what_a_server_earned_can_be_spent_when_a_day_has_passed_and_150_ticks_were_earned_after_it() -> None:
    balances, now = Balances(), NOW
    balances.mint(CLIENT.public_key, 10**6, bytes(32), NOW - 25 * 3600)
    earned: list[int] = []
    for number in range(320):
        now += 3600 * 6  # one tick in six hours
        words = PayWords(number.to_bytes(16, "big"), 1)
        opened_hash = sha256(words.root).digest()
        body = Open(SERVER.public_key, b"s", words.root, 100, 32, 1, 3600, 1)
        balances.apply(CLIENT.public_key, body, opened_hash, now)
        balances.apply(SERVER.public_key, Close(opened_hash, 1, words.word(1)), sha256(opened_hash).digest(), now)
        earned.append(95)
        list(balances.advance(SERVER.public_key, now))
        server = balances.account(SERVER.public_key)
        assert server.waiting == sum(earned[-150:])
        assert balances.imbalance() == 0
    assert server.spendable > 0
    balances.confiscate(SERVER.public_key, bytes(32), now, vested_too=False)
    assert (server.waiting, server.due) == (0, {})
    assert balances.imbalance() == 0


def test_a_fast_server_waits_for_the_day_and_credit_for_training_for_the_day_alone() -> None:
    balances, now = Balances(), NOW
    balances.mint(CLIENT.public_key, 10**6, bytes(32), NOW - 25 * 3600)
    for number in range(3):
        words = PayWords(number.to_bytes(16, "big"), 200)
        opened_hash = sha256(words.root).digest()
        body = Open(SERVER.public_key, b"s", words.root, 100, 32, 200, 3600, 1)
        balances.apply(CLIENT.public_key, body, opened_hash, now)
        balances.apply(SERVER.public_key, Close(opened_hash, 200, words.word(200)), sha256(opened_hash).digest(), now)
        now += 12 * 3600
    list(balances.advance(SERVER.public_key, now - 3600))
    assert 18_000 < balances.account(SERVER.public_key).spendable < 19_000, "the first; the second waits for its day"
    balances.mint(OTHER.public_key, 500, bytes(32), now)
    list(balances.advance(OTHER.public_key, now + 24 * 3600))
    assert balances.account(OTHER.public_key).spendable == 500


def test_a_close_pays_once_and_only_its_server(store: Store) -> None:
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    store.append_own(OTHER, [closed(open_entry, 10)], NOW)
    assert account(store, OTHER).contributed == 0
    for _ in range(2):
        store.append_own(SERVER, [closed(open_entry, 2)], NOW)
    assert account(store, SERVER).contributed == 190
    assert store.balances.imbalance() == 0


@pytest.mark.parametrize(("ticks", "word"), [(3, WORDS.word(2)), (3, bytes(16)), (11, WORDS.word(11))])
def test_a_close_without_the_word_of_its_ticks_pays_nothing(store: Store, ticks: int, word: bytes) -> None:
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    store.append_own(SERVER, [Close(entries.hash_of(open_entry), ticks, word)], NOW)
    assert account(store, SERVER).contributed == 0
    assert account(store, CLIENT).reserved == 1000


def test_a_close_that_comes_before_its_open_is_paid_when_the_open_comes(store: Store) -> None:
    elsewhere = Store(None)
    (open_entry,) = elsewhere.append_own(CLIENT, [opened()], NOW)
    store.append_own(OTHER, [closed(open_entry, 10)], NOW)  # not the server: must not take the place
    store.append_own(SERVER, [closed(open_entry, 4)], NOW)
    assert isinstance(store.receive(open_entry, NOW), Accepted)
    assert account(store, SERVER).contributed == 380
    assert not {place for place in store.balances.early if place.endswith(SERVER.public_key)}


def test_nobody_spends_more_than_he_has(store: Store) -> None:
    had = account(store, CLIENT).spendable
    (first, second) = store.append_own(CLIENT, [opened(had // 10), opened(had // 10, session=b"t")], NOW)
    assert account(store, CLIENT).spendable < 10
    store.append_own(SERVER, [closed(first, 10), closed(second, 10)], NOW)
    assert account(store, SERVER).contributed <= had * 95 // 100
    assert store.balances.imbalance() == 0


def test_a_transfer_to_oneself_through_two_keys_loses_the_burn(store: Store) -> None:
    had = account(store, CLIENT).spendable
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    store.append_own(OTHER, [closed(open_entry, 10)], NOW)
    (open_entry,) = store.append_own(CLIENT, [opened(server=OTHER)], NOW)
    store.append_own(OTHER, [closed(open_entry, 10)], NOW)
    both = account(store, CLIENT), account(store, OTHER)
    assert sum(a.spendable + a.reserved + a.waiting for a in both) == had - 50 - 0
    assert account(store, CLIENT).reserved == 1000, "the first OPEN is still set aside"


def test_an_open_to_oneself_moves_nothing(store: Store) -> None:
    had = account(store, CLIENT).spendable
    (open_entry,) = store.append_own(CLIENT, [opened(server=CLIENT)], NOW)
    store.append_own(CLIENT, [closed(open_entry, 10)], NOW)
    assert account(store, CLIENT).spendable == had
    assert account(store, CLIENT).contributed == 5000, "as minted"


def test_what_nobody_claims_goes_back_and_a_late_server_is_paid_all_the_same(store: Store) -> None:
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    later = NOW + 3 * 3600
    list(store.balances.advance(CLIENT.public_key, later))
    assert account(store, CLIENT).reserved == 0
    store.append_own(SERVER, [closed(open_entry, 3)], later)
    assert account(store, SERVER).contributed == 285
    list(store.balances.advance(CLIENT.public_key, NOW + 9 * 86_400))
    assert not store.balances.reservations
    assert store.balances.imbalance() == 0


def test_credit_halves_in_thirty_days_in_one_step_or_in_many(store: Store) -> None:
    had = account(store, CLIENT).spendable
    once, often = Store(None), Store(None)
    for each in (once, often):
        give(each, CLIENT, 5000)
    for day in range(1, 31):
        list(often.balances.advance(CLIENT.public_key, NOW + day * 86_400))
    list(once.balances.advance(CLIENT.public_key, NOW + 30 * 86_400))
    assert account(once, CLIENT).spendable == had // 2
    assert had // 2 - 30 <= account(often, CLIENT).spendable <= had // 2
    assert once.balances.imbalance() == often.balances.imbalance() == 0


def test_a_clock_a_day_off_neither_gains_nor_stops_anything(store: Store) -> None:
    for days in (-1, 1):
        author = Identity(bytes([40 + days]) * 32)
        give(store, author, 2000)
        before = account(store, author).spendable
        body = opened(session=bytes([5 + days]))
        chain = store.chain(author.public_key)
        entry = entries.write(author, 0, chain.head, NOW + days * 86_400, body)
        assert isinstance(store.receive(entry, NOW), Accepted)
        assert account(store, author).spendable == before - 1000
        store.append_own(SERVER, [closed(entry, 10)], NOW + 5)
    assert account(store, SERVER).contributed == 1900


def test_a_hidden_spend_is_a_fork_and_costs_all_that_can_be_spent(store: Store) -> None:
    hidden = entries.write(CLIENT, 0, bytes(32), NOW, opened(server=OTHER))
    store.append_own(CLIENT, [opened()], NOW)
    verdict = store.receive(hidden, NOW)
    assert isinstance(verdict, Forked)
    store.append_own(SERVER, [verdict.proof], NOW + 1)
    assert account(store, CLIENT).forked
    assert account(store, CLIENT).spendable == 0
    assert store.balances.imbalance() == 0
    following = entries.write(CLIENT, 1, store.chain(CLIENT.public_key).head, NOW + 2, opened())
    assert store.receive(following, NOW + 2) == Refused("forked")
    with pytest.raises(LocalFault):
        store.append_own(CLIENT, [opened()], NOW + 2)


def test_a_fork_proof_that_proves_nothing_is_stored_and_moves_nothing(store: Store) -> None:
    had = account(store, CLIENT).spendable
    rubbish = Branch(bytes(32), 0, bytes(32), bytes(64))
    for seq, author in enumerate((CLIENT.public_key, b"\xff" * 32)):  # the second is no key at all
        proof = ForkProof(author, 0, rubbish, Branch(bytes(32), seq, b"\1" * 32, bytes(64)))
        entry = entries.write(SERVER, seq, store.chain(SERVER.public_key).head, NOW, proof)
        assert isinstance(store.receive(entry, NOW), Accepted)
    assert account(store, CLIENT).spendable == had
    assert not account(store, CLIENT).forked
    assert store.chain(SERVER.public_key).length == 2


def test_the_server_of_a_forker_is_paid_from_what_was_set_aside(store: Store) -> None:
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    verdict = store.receive(entries.write(CLIENT, 0, bytes(32), NOW, opened(server=OTHER)), NOW)
    assert isinstance(verdict, Forked)
    store.append_own(OTHER, [verdict.proof], NOW)
    store.append_own(SERVER, [closed(open_entry, 10)], NOW + 1)
    assert account(store, SERVER).contributed == 950


def test_an_account_goes_on_under_its_new_key(store: Store) -> None:
    chain = store.chain(CLIENT.public_key)
    had = account(store, CLIENT).spendable
    (rotate,) = store.append_own(CLIENT, [entries.consent(OTHER, CLIENT.public_key, 0, chain.head)], NOW)
    first = entries.write(OTHER, 0, entries.hash_of(rotate), NOW, opened())
    assert isinstance(store.receive(first, NOW), Accepted)
    assert account(store, OTHER) is account(store, CLIENT)
    assert account(store, CLIENT).spendable == had - 1000
    stolen = entries.write(CLIENT, 1, entries.hash_of(rotate), NOW, opened())
    assert store.receive(stolen, NOW) == Refused("rotated")
    with pytest.raises(LocalFault):
        store.append_own(CLIENT, [opened()], NOW)


def trained(tokens: int, number: int = 0) -> Train:
    return Train(b"run", number, tokens, bytes(32), bytes(32), bytes(32))


@pytest.mark.parametrize("train_first", [True, False])
def test_training_that_a_judge_found_sound_is_credited_once_in_whatever_order_the_two_come(train_first: bool) -> None:
    store = Store(None, judges=frozenset({OTHER.public_key}))
    train = entries.write(CLIENT, 0, NO_HASH, NOW, trained(700))
    verdict = Verdict(CLIENT.public_key, 1, entries.hash_of(train), 0, bytes(32), 700)
    if train_first:
        store.receive(train, NOW)
    store.append_own(OTHER, [verdict], NOW)
    if not train_first:
        store.receive(train, NOW)
    assert account(store, CLIENT).waiting == 700
    if train_first:
        store.append_own(OTHER, [verdict], NOW)
        assert account(store, CLIENT).waiting == 700
    assert store.balances.imbalance() == 0


def test_nobody_but_a_judge_creates_credit_and_no_judge_for_himself() -> None:
    store = Store(None, judges=frozenset({OTHER.public_key}))
    (train,) = store.append_own(CLIENT, [trained(700)], NOW)
    (own,) = store.append_own(OTHER, [trained(900)], NOW)
    store.append_own(SERVER, [Verdict(CLIENT.public_key, 1, entries.hash_of(train), 0, bytes(32), 700)], NOW)
    store.append_own(OTHER, [Verdict(OTHER.public_key, 1, entries.hash_of(own), 0, bytes(32), 900)], NOW)
    store.append_own(OTHER, [Verdict(SERVER.public_key, 1, entries.hash_of(train), 0, bytes(32), 700)], NOW)
    assert store.balances.totals.minted == 0


def test_a_round_is_paid_once_however_many_trains_are_written_of_it() -> None:
    store = Store(None, judges=frozenset({OTHER.public_key}))
    for number in (0, 0, 1):
        (train,) = store.append_own(CLIENT, [trained(700, number)], NOW)
        store.append_own(OTHER, [Verdict(CLIENT.public_key, 1, entries.hash_of(train), 0, bytes(32), 700)], NOW)
    assert account(store, CLIENT).waiting == 1400


def test_no_verdict_is_worth_more_than_twenty_credits_a_token() -> None:
    store = Store(None, judges=frozenset({OTHER.public_key}))
    (train,) = store.append_own(CLIENT, [trained(700)], NOW)
    store.append_own(OTHER, [Verdict(CLIENT.public_key, 1, entries.hash_of(train), 0, bytes(32), 10**9)], NOW)
    assert account(store, CLIENT).waiting == 14_000


def test_work_that_nobody_judges_is_forgotten_after_a_week() -> None:
    store = Store(None, judges=frozenset({OTHER.public_key}))
    (old,) = store.append_own(CLIENT, [trained(700)], NOW)
    store.append_own(CLIENT, [trained(700, 1)], NOW + 8 * 86_400)
    assert list(store.balances.works) != [entries.hash_of(old)]
    assert len(store.balances.works) == 1


def test_false_work_costs_what_waits_to_be_spent(store: Store) -> None:
    judged = Store(None, judges=frozenset({OTHER.public_key}))
    give(judged, CLIENT, 5000)
    (open_entry,) = judged.append_own(CLIENT, [opened()], NOW)
    judged.append_own(SERVER, [closed(open_entry, 10)], NOW)
    judged.append_own(OTHER, [Verdict(SERVER.public_key, 0, bytes(32), 1, bytes(32))], NOW)
    assert account(judged, SERVER).waiting == 0
    assert judged.balances.imbalance() == 0
    (open_entry,) = store.append_own(CLIENT, [opened()], NOW)
    store.append_own(SERVER, [closed(open_entry, 10)], NOW)
    store.append_own(OTHER, [Verdict(SERVER.public_key, 0, bytes(32), 1, bytes(32))], NOW)
    assert account(store, SERVER).waiting == 950, "whoever is no judge takes nothing"


def busy(path: Path, seed: int, steps: int) -> Store:
    """A store after random sessions between random peers."""
    store, draw = Store(path), random.Random(seed)
    people = [Identity(bytes([60 + n]) * 32) for n in range(4)]
    pending: list[tuple[Identity, Entry]] = []
    now = NOW
    for step in range(steps):
        now += draw.randrange(20_000)
        client, server = draw.sample(people, 2)
        if pending and draw.random() < 0.5:
            closer, entry = pending.pop(draw.randrange(len(pending)))
            store.append_own(closer, [closed(entry, draw.randrange(12))], now)
        elif draw.random() < 0.1:
            store.append_own(client, [Ack(draw.randbytes(32), 1)], now)
        else:
            body = opened(draw.randrange(50), server=server, session=step.to_bytes(4, "big"))
            (entry,) = store.append_own(client, [body], now)
            pending.append((server, entry))
        assert store.balances.imbalance() == 0
    return store


@pytest.mark.parametrize("seed", range(3))
def test_balances_are_rebuilt_equal_from_the_entries(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "ledger.sqlite"
    before = busy(path, seed, 80)
    accounts, totals = before.balances.accounts, before.balances.totals
    before.close()
    again = Store(path)
    assert not again.drifted
    assert (again.balances.accounts, again.balances.totals) == (accounts, totals)


def test_balances_that_somebody_changed_on_the_disk_are_found_and_corrected(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    busy(path, 0, 10).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE projection SET value = x'960000800000c2' WHERE kind = 'account'")
    database.close()
    repaired = Store(path)
    assert repaired.drifted
    repaired.close()
    assert not Store(path).drifted


def test_entries_that_somebody_changed_on_the_disk_are_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    busy(path, 0, 30).close()
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM entries WHERE id = 3")
    database.close()
    with pytest.raises(LocalFault, match="does not follow"):
        Store(path)


def test_the_best_word_of_a_running_session_survives_and_goes_with_its_close(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    store = Store(path)
    (entry,) = store.append_own(CLIENT, [opened()], NOW)
    store.owe_all([Owed(entries.hash_of(entry), 3, WORDS.word(3))])
    store.owe_all([Owed(entries.hash_of(entry), 4, WORDS.word(4))])
    store.close()
    store = Store(path)
    (owed,) = store.owed()
    assert (owed.open, owed.ticks, owed.word) == (entries.hash_of(entry), 4, WORDS.word(4))
    store.append_own(SERVER, [Close(owed.open, owed.ticks, owed.word)], NOW)
    assert not store.owed()


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"my diary " * 500)
    with pytest.raises(LocalFault, match=r"cannot use the ledger .* move it away"):
        Store(path)
    assert path.read_bytes() == b"my diary " * 500
    with pytest.raises(UsageError, match="there is no ledger"):
        Store(tmp_path / "nowhere.sqlite", read_only=True)


def test_a_file_that_breaks_under_a_running_node_raises_what_the_node_lives_through(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.sqlite")
    store.append_own(CLIENT, [opened()], NOW)
    other = sqlite3.connect(tmp_path / "ledger.sqlite")
    other.executescript("DROP TABLE owed; DROP TABLE entries;")
    other.close()
    for look in (store.owed, store.last, store.all, lambda: store.after(0), lambda: store.of(CLIENT.public_key)):
        with pytest.raises(ShoalError, match="cannot use the ledger"):
            list(look())  # type: ignore[call-overload]
    with pytest.raises(ShoalError, match="cannot use the ledger"):
        store.append_own(CLIENT, [opened()], NOW)
    store.close()


class BrokenDisk:
    """A connection of which every statement fails."""

    in_transaction = False

    def execute(self, *_: object) -> NoReturn:
        raise sqlite3.OperationalError("disk I/O error")


def test_a_disk_that_fails_in_every_statement_raises_what_the_node_lives_through_and_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.sqlite")
    (first,) = store.append_own(CLIENT, [opened()], NOW)
    theirs = entries.write(SERVER, 0, NO_HASH, NOW, closed(first, 1))
    database = store._database  # noqa: SLF001  as SQLite hands it out
    for write in (lambda: store.receive(theirs, NOW), lambda: store.append_own(CLIENT, [opened()], NOW)):
        store._database = BrokenDisk()  # type: ignore[assignment]  # noqa: SLF001
        with pytest.raises(ShoalError, match="cannot use the ledger"):
            write()
        store._database = database  # noqa: SLF001
    with pytest.raises(ShoalError):
        store.append_own(CLIENT, [opened()], NOW)  # it knows nothing of its own chain; the disk does
    (second,) = store.append_own(CLIENT, [opened()], NOW)
    assert second.seq == 1
    assert store.receive(theirs, NOW) == Accepted(store.chain(SERVER.public_key))
    assert store.of(CLIENT.public_key) == [first, second]
    store.close()
