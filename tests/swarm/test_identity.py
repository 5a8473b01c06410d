"""Key files and signatures."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from swarm.people import person

from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity, verify


def test_a_new_identity_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Identity.load_or_create(path).peer_id == made.peer_id
    assert list(path.parent.iterdir()) == [path]


def test_the_key_file_is_what_libp2p_reads(tmp_path: Path) -> None:
    identity = person(3)
    assert identity.write_key(tmp_path / "key")
    data = (tmp_path / "key").read_bytes()
    assert len(data) == 68
    assert data[:4] == bytes.fromhex("08011240")
    assert data[36:] == identity.public_key
    assert Identity(data[4:36]).peer_id == identity.peer_id
    assert data == identity.libp2p_key()


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert person(1).write_key(path)
    assert not person(2).write_key(path)
    loaded = Identity.load(path)
    assert loaded is not None
    assert loaded.peer_id == person(1).peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    person(1).write_key(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 68, person(1).libp2p_key()[:-1], person(1).libp2p_key()[:-32] + person(2).public_key],
    ids=["empty", "noise", "truncated", "keys do not belong together"],
)
def test_a_damaged_key_is_refused_and_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not an ed25519 key file"):
        Identity.load_or_create(path)
    assert path.read_bytes() == data


def test_a_folder_in_the_place_of_the_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Identity.load_or_create(tmp_path)


def test_processes_that_create_at_the_same_time_agree_on_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shoal.swarm.identity import Identity;"
        "sys.stdin.read(1); print(Identity.load_or_create(Path(sys.argv[1])).peer_id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    seen = {process.communicate("x", timeout=60)[0] for process in processes}
    assert len(seen) == 1
    assert all(process.returncode == 0 for process in processes)


def test_a_signature_counts_for_its_signer_domain_and_message_only() -> None:
    alice, bob = person(1), person(2)
    signature = alice.sign("record", b"hello")
    assert verify(alice.peer_id, "record", b"hello", signature)
    assert not verify(bob.peer_id, "record", b"hello", signature)
    assert not verify(alice.peer_id, "receipt", b"hello", signature)
    assert not verify(alice.peer_id, "record", b"hello!", signature)
    assert not verify(alice.peer_id, "recor", b"dhello", signature)


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\xff" * 64, b"x" * 63, b"x" * 10_000])
def test_rubbish_is_no_signature(signature: bytes) -> None:
    assert not verify(person(1).peer_id, "record", b"hello", signature)
    assert not verify(PeerId("nobody"), "record", b"hello", signature)


def test_a_signature_with_s_beyond_the_group_order_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    signature = person(1).sign("record", b"hello")
    s = int.from_bytes(signature[32:], "little")
    bent = signature[:32] + (s + order).to_bytes(32, "little")
    assert not verify(person(1).peer_id, "record", b"hello", bent)


def test_a_key_is_not_printed() -> None:
    seed = os.urandom(32)
    text = repr(Identity(seed)) + str(Identity(seed))
    assert seed.hex() not in text
    assert "Identity(12D3KooW" in text
