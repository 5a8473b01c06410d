"""`shoal ledger`: read from a home, beside a node or without one."""

import json
import sqlite3
from pathlib import Path

import pytest
from incentives import case_samples
from node.cli.shoal_process import Here

from shoal.incentives import audit_case
from shoal.incentives import entry as entries
from shoal.incentives.bodies import Ack, Close, Open, Verdict
from shoal.incentives.entry import NO_HASH
from shoal.incentives.explanation import short
from shoal.incentives.payword import PayWords
from shoal.incentives.store import Store
from shoal.node.audit_memory import AuditMemory
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity

NOW = 1_790_000_000
CLIENT = Identity(bytes([1]) * 32)
WORDS = PayWords(bytes(16), 10)


@pytest.fixture
def node(home: Path) -> Identity:
    """A home whose node has served a session of a client, and used one of the same peer."""
    place = Home(home)
    place.prepare()
    identity = Identity.load_or_create(place.identity)
    store = Store(place.ledger)
    body = Open(identity.public_key, b"s", WORDS.root, 0, 32, 10, 3600, 0)
    opened = entries.write(CLIENT, 0, NO_HASH, NOW, body)
    store.receive(opened, NOW)
    close = Close(entries.hash_of(opened), 7, WORDS.word(7))
    own = Open(CLIENT.public_key, b"t", WORDS.root, 100, 32, 10, 3600, 1)
    store.append_own(identity, [close, own, Ack(bytes(32), 1)], NOW + 60)
    store.close()
    return identity


def test_a_home_without_a_ledger_says_how_to_get_one(shoal: Here) -> None:
    for command in ("balance", "history", "explain", "verify"):
        ran = shoal("ledger", command)
        assert ran.code == 2
        assert "there is no ledger" in ran.complaint
        assert "shoal up" in ran.complaint


def test_the_balance_is_shown_for_people_and_for_programs(shoal: Here, node: Identity) -> None:
    assert "can be spent" in shoal("ledger", "balance").out
    (event,) = shoal("ledger", "balance", "--json").events
    assert event == {
        "schema": 1,
        "event": "balance",
        "peer": node.peer_id,
        "spendable": 0,
        "waiting": 0,
        "reserved": 0,
        "contributed": 0,
        "standing": "good",
        "entries": 3,
    }


def test_another_peer_is_named_by_the_end_of_its_id(shoal: Here, node: Identity) -> None:
    (event,) = shoal("ledger", "balance", "--peer", CLIENT.peer_id[-8:], "--json").events
    assert event["peer"] == CLIENT.peer_id
    assert event["entries"] == 1
    ran = shoal("ledger", "balance", "--peer", "nobody")
    assert ran.code == 2
    assert "no peer whose PeerID ends in 'nobody'" in ran.complaint


def test_the_history_lists_the_entries_in_order(shoal: Here, node: Identity) -> None:
    events = shoal("ledger", "history", "--json").events
    assert [(event["seq"], event["kind"]) for event in events] == [(0, "close"), (1, "open"), (2, "ack")]
    (last,) = shoal("ledger", "history", "--last", "1", "--json").events
    assert last["kind"] == "ack"
    assert shoal("ledger", "history").out.count("\n") == 4


def test_the_explanation_needs_no_glossary(shoal: Here, node: Identity) -> None:
    said = shoal("ledger", "explain").out
    assert "This node settled a session with proof of 224 tokens." in said
    assert f"This node opened a session of at most 320 tokens at peer ...{CLIENT.peer_id[-8:]}, for 100 credits" in said
    assert (
        "This node acknowledged a settlement and complained: it took the word for a replay and served nothing." in said
    )


def test_a_sound_ledger_verifies_and_a_tampered_one_does_not(shoal: Here, node: Identity, home: Path) -> None:
    ran = shoal("ledger", "verify", "--json")
    assert ran.code == 0
    counts = {"entries": 4, "peers": 2, "verdicts": 0, "with_evidence": 0}
    assert ran.events == [{"schema": 1, "event": "verified", **counts, "sound": True}]
    with sqlite3.connect(home / "ledger.sqlite") as database:
        ((number, data),) = database.execute("SELECT id, data FROM entries ORDER BY id DESC LIMIT 1").fetchall()
        database.execute("UPDATE entries SET data = ? WHERE id = ?", (data[:-1] + bytes([data[-1] ^ 1]), number))
    database.close()
    ran = shoal("ledger", "verify")
    assert ran.code == 1
    assert f"entry 2 of {node.peer_id}: refused: unsigned" in ran.out
    assert "4 entries of 2 peers, 1 wrong" in ran.out


def test_verdicts_are_told_in_words_and_their_evidence_is_looked_at(shoal: Here, node: Identity, home: Path) -> None:
    """One that the node wrote itself, and one about it by somebody whose evidence is not here."""
    case = case_samples.against(0, 1)
    assert case is not None
    own, data = audit_case.verdict_of(case, audit_case.FALSE), audit_case.encode(case)
    memory, store = AuditMemory(Home(home).audits), Store(Home(home).ledger)
    memory.keep_case(own.evidence, data)
    store.append_own(node, [own], NOW + 60)
    other = Identity(bytes([9]) * 32)
    store.receive(entries.write(other, 0, NO_HASH, NOW, Verdict(node.public_key, 0, bytes(32), 0, bytes(32))), NOW)
    told = shoal("ledger", "explain").out
    assert (
        f"had work of a session by peer {short(case_samples.SERVER.public_key)} computed again and found it false"
        in told
    )
    assert (
        f"Peer {short(other.public_key)} had work of a session by this node computed again and found it sound" in told
    )
    checked = shoal("ledger", "verify")
    assert checked.code == 0
    assert "2 verdicts on work in sessions; the evidence of 1 is kept here" in checked.out
    memory.keep_case(own.evidence, data[:-1] + bytes([data[-1] ^ 1]))
    spoilt = shoal("ledger", "verify")
    assert spoilt.code == 1
    assert "does not bear it out" in spoilt.out
    memory.close()
    store.close()


def test_the_export_holds_every_byte(shoal: Here, node: Identity, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    assert shoal("ledger", "export", str(file)).out == f"4 entries in {file}\n"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["open", "close", "open", "ack"]
    for line in lines:
        entry = entries.decode(bytes.fromhex(line["raw"]))
        assert entries.is_signed(entry)
        assert entries.hash_of(entry).hex() == line["hash"]
    assert shoal("ledger", "export", "-").out == file.read_text()
    ran = shoal("ledger", "export", str(tmp_path / "no" / "folder"))
    assert ran.code == 2
    assert "cannot write" in ran.complaint


def test_the_commands_change_nothing(shoal: Here, node: Identity, home: Path) -> None:
    before = (home / "ledger.sqlite").read_bytes()
    for command in ("balance", "history", "explain", "verify"):
        assert shoal("ledger", command).code == 0
    assert (home / "ledger.sqlite").read_bytes() == before


def test_a_file_that_is_no_ledger_is_told(shoal: Here, node: Identity, home: Path) -> None:
    (home / "ledger.sqlite").write_bytes(b"something else " * 300)
    ran = shoal("ledger", "balance")
    assert ran.code == 1
    assert "cannot use the ledger" in ran.complaint
    assert "move it away" in ran.complaint
