"""The reference names every command and every flag, and no other."""

import re
from pathlib import Path
from typing import Any

from shoal.node.cli.commands import command_line
from shoal.node.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"
Command = Any  # click's, which typer carries under a private name
REFERENCE = (DOCS / "reference" / "cli.md").read_text()


def commands(command: Command, path: str = "shoal") -> dict[str, Command]:
    found = {path: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= commands(child, f"{path} {name}")
    return found


def flags(command: Command) -> set[str]:
    return {
        flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts) if flag[0] == "-"
    }


def test_every_command_and_flag_is_in_the_reference() -> None:
    found = commands(command_line())
    assert len(found) > 15
    for path, command in found.items():
        assert path == "shoal" or f"`{path}" in REFERENCE, path
        for flag in flags(command) - {"-h", "--help", "--version"}:
            assert re.search(rf"`[^`]*{flag}\b", REFERENCE), (path, flag)


def test_the_documents_name_no_flag_that_does_not_exist() -> None:
    known = {flag for command in commands(command_line()).values() for flag in flags(command)} | {"--keep", "--help"}
    for document in [
        *DOCS.glob("*.md"),
        *DOCS.glob("how-to/*.md"),
        *DOCS.glob("reference/*.md"),
        DOCS.parent / "README.md",
    ]:
        if document.name in ("decisions.md", "measures.md"):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text()):
            assert flag in known, (document.name, flag)


def test_the_settings_of_the_example_exist() -> None:
    example = re.search(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)
    assert example is not None
    names = set(re.findall(r"^(\w+) =", example[1], re.MULTILINE))
    assert len(names) > 5
    assert names <= set(Settings.model_fields)


def test_every_file_that_the_documents_name_exists() -> None:
    root = DOCS.parent
    text = (root / "README.md").read_text() + (DOCS / "architecture.md").read_text()
    for name in re.findall(r"`((?:docs|swarm|node|scripts|compression|tests)/[\w./-]*)`", text):
        assert (root / name).exists(), name
