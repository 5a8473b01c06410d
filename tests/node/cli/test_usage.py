"""Help, usage errors, exit codes and the cost of a start, with no node anywhere."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from node.cli.shoal_process import Here, Ran

from shoal.node.cli.failures import described
from shoal.swarm.errors import ModelNotServable, OutOfMemory, Refused, SwarmUnreachable, UsageError, VersionMismatch

COMMANDS = [
    ["up"],
    ["join"],
    ["chat"],
    ["generate"],
    ["models"],
    ["peers"],
    ["peers", "revoke"],
    ["status"],
    ["invite"],
    ["invite", "create"],
    ["invite", "list"],
    ["invite", "revoke"],
    ["key"],
    ["key", "show"],
    ["key", "new"],
    ["kv", "calibrate"],
    ["doctor"],
    ["down"],
    ["version"],
]
HEAVY = ("torch", "hivemind", "transformers", "numpy", "httpx", "fastapi", "uvicorn", "pydantic_settings")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(shoal: Here, command: list[str]) -> None:
    ran = shoal(*command, "--help")
    assert ran.code == 0
    assert re.search(r"Example: .*shoal " + " ".join(command[:1]), ran.out)
    assert "--json" in ran.out
    assert command in (["version"], ["kv", "calibrate"]) or "--home" in ran.out


def test_the_bare_command_shows_the_commands(shoal: Here) -> None:
    ran = shoal()
    assert ran.code == 0
    assert all(command[0] in ran.out for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["up", "--bogus"], "--bogus"),
        (["up", "--port", "many"], "--port"),
        (["up", "--port", "70000"], "--port"),
        (["up", "--name", "x" * 100], "--name"),
        (["up", "--name", "two\nlines"], "--name"),
        (["up", "--swarm-name", "two\nlines"], "--swarm-name"),
        (["up", "--relay", "example.org"], "--relay"),
        (["up", "--announce", "example.org"], "--announce"),
        (["up", "--gateway-only", "--layers", "0:4"], "--gateway-only"),
        (["up", "--layers", "foo"], "--layers"),
        (["up", "--layers", "5:3"], "--layers"),
        (["up", "--dtype", "int3"], "--dtype"),
        (["up", "--device", "tpu"], "--device"),
        (["up", "--max-memory", "foo"], "memory"),
        (["up", "--max-memory", "200%"], "memory"),
        (["up", "--kv-disk", "0"], "a disk size (--kv-disk) of '0' leaves room for nothing"),
        (["up", "--kv-disk", "abc"], "cannot read the disk size (--kv-disk) 'abc'"),
        (["up", "--host", "300.1.1.1"], "--host"),
        (["up", "--host", "192.0.2.1"], "--host"),
        (["join", "shoal1:x", "--layers", "foo"], "--layers"),
        (["join"], "invite"),
        (["generate"], "prompt"),
        (["generate", "hi", "--temperature", "-1"], "--temperature"),
        (["generate", "hi", "--top-p", "2"], "--top-p"),
        (["generate", "hi", "--exclude", "nobody"], "--exclude"),
        (["generate", "hi", "--prefill", "sometimes"], "--prefill"),
        (["generate", "hi", "--invite", "shoal1:x", "--api", "http://127.0.0.1:1"], "--invite"),
        (["generate", ""], "empty"),
        (["generate", "hi", "--invite", ""], "empty"),
        (["chat", "--invite", " "], "empty"),
        (["models", "--invite", ""], "empty"),
        (["join", ""], "empty"),
        (["invite", "--ttl", "soon"], "--ttl"),
        (["invite", "--ttl", "400d"], "--ttl"),
        (["invite", "--ttl", "5"], "--ttl"),
        (["invite", "--ttl", "0s"], "--ttl"),
    ],
)
def test_a_misused_command_is_told_in_one_line(shoal: Here, arguments: list[str], words: str) -> None:
    ran = shoal(*arguments)
    assert ran.code == 2
    assert words in ran.complaint
    assert not shoal.home.exists()


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_prompt_that_is_not_utf_8_is_called_so(tmp_path: Path, locale: str) -> None:
    environment = {**os.environ, "LC_ALL": locale, "SHOAL_HOME": str(tmp_path)}
    for arguments in ([b"-"], [b"caf\xe9"]):
        done = subprocess.run(
            [sys.executable, "-m", "shoal", "generate", *arguments],
            input=b"caf\xe9",
            capture_output=True,
            env=environment,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (2, b"shoal: the prompt is not valid UTF-8\n")


@pytest.mark.parametrize("arguments", [["up", "--bogus"], ["nonsense"], ["up", "--port", "x"], ["up", "--host", "x"]])
def test_every_misuse_has_the_same_type_in_json(shoal: Here, arguments: list[str]) -> None:
    ran = shoal(*arguments, "--json")
    assert [(event["type"], event["exit_code"]) for event in ran.events] == [("UsageError", 2)]


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["peers"], ["peers", "revoke", "ana"], ["invite"], ["invite", "list"], ["down"], ["generate", "hi"],
     ["models"], ["invite", "revoke", "abc"]],
    ids=" ".join,
)  # fmt: skip
def test_without_a_node_the_exit_code_is_3(shoal: Here, arguments: list[str]) -> None:
    ran = shoal(*arguments, "--json")
    assert ran.code == 3
    assert "no node" in ran.complaint
    assert [event["event"] for event in ran.events] == ["error"]
    assert ran.events[0]["schema"] == 1
    assert ran.events[0]["exit_code"] == 3
    assert ran.events[0]["message"] == ran.complaint


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (SwarmUnreachable("x"), 3),
        (Refused("x"), 4),
        (ModelNotServable("x"), 5),
        (OutOfMemory("x"), 6),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 6),
        (MemoryError(), 6),
        (VersionMismatch("x"), 7),
        (ValueError("our bug\nin two lines"), 1),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(error: Exception, code: int) -> None:
    found, line = described(error)
    assert found == code
    assert line
    assert "\n" not in line


def test_a_bug_shows_its_traceback_only_with_debug(shoal: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("shoal.node.cli.version._installed", broken)
    monkeypatch.delenv("SHOAL_DEBUG", raising=False)
    quiet = shoal("version")
    assert quiet.code == 1
    assert "ZeroDivisionError" in quiet.complaint
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    assert "Traceback" in shoal("version").err


def test_version_names_what_is_installed(shoal: Here) -> None:
    assert "torch" in shoal("version").out
    (event,) = shoal("version", "--json").events
    assert event["event"] == "version"
    assert event["schema"] == 1
    assert set(event["parts"]) == {"torch", "transformers", "hivemind"}
    assert shoal("--version").out.startswith("shoal ")


def redirected(how: str, command: str = "version", **more: str) -> Ran:
    """A command as a shell runs it, with its stdout redirected. how: `>/dev/full`"""
    line = f'"{sys.executable}" -P -m shoal {command} {how}'
    done = subprocess.run(
        ["/bin/bash", "-c", line], capture_output=True, text=True, env={**os.environ, **more}, timeout=60, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_words_that_cannot_be_written_are_told_as_a_full_disk() -> None:
    ran = redirected(">/dev/full")
    assert (ran.code, ran.complaint) == (6, "the disk is full: the output cannot be written")


def test_a_closed_stdout_or_stderr_hinders_no_command() -> None:
    for how in (">&-", "2>&-", "<&-", ">&- 2>&-"):
        ran = redirected(how)
        assert (ran.code, ran.err) == (0, "")


def test_a_reader_that_has_had_enough_is_nobodys_fault() -> None:
    ran = redirected("| true; exit ${PIPESTATUS[0]}")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_characters_shows_others(encoding: str) -> None:
    code = (
        "import sys; sys.argv = ['shoal', 'version']; from shoal.node.cli import version, main; "
        "version._installed = lambda _: '\u2588'; main.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"torch ?" in done.stdout


def fresh(code: str) -> Ran:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status", "--home", "/nonexistent/home"],
        ["up", "--help"],
        ["kv", "calibrate", "--help"],
        ["kv", "calibrate", "/nonexistent/model", "/nonexistent/text"],
    ],
)
def test_help_and_status_import_nothing_heavy(arguments: list[str]) -> None:
    ran = fresh(
        f"import sys; from shoal.node.cli.main import main; main({arguments!r}); "
        f"print('\\n' + ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == ""


def test_help_comes_quickly() -> None:
    def seconds() -> float:
        """Of the processor: the machine may be busy."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        fresh("from shoal.node.cli.main import main; main(['--help'])")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "given", "threads"), [(["up"], "", "1"), (["train"], "", "1"), (["up"], "4", "4")]
)
def test_what_computes_keeps_numpy_to_one_thread_unless_told_otherwise(
    arguments: list[str], given: str, threads: str
) -> None:
    """Its threads would wait for each other beside torch's: decoding a KV chunk then takes four times as long."""
    code = (
        "import os, sys\n"
        f"sys.argv = ['shoal', *{arguments!r}, '--help']\n"
        "from shoal.node.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    print('threads', os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment |= {"OPENBLAS_NUM_THREADS": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert f"threads {threads}" in done.stdout
