"""Docs go stale in their names first: every file and every flag that they name exists, and every flag is named."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.node.cli.commands import command_line

ROOT = Path(__file__).parents[2]
ROOMS = ("compression", "swarm", "incentives", "node", "scripts", "tests", "src")
DOCS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("node/**/*.md")])
SOURCES = [path for room in ROOMS for path in ROOT.glob(f"{room}/**/*.py")]


def _is_there(name: str) -> bool:
    """A path from the root, or the end of one; `*` stands for anything."""
    return any(path.match(name) for path in SOURCES)


def _flags(command: Any) -> Iterator[str]:  # noqa: ANN401  click's own, which typer carries along
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield from (flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--"))
    for below in getattr(command, "commands", {}).values():
        yield from _flags(below)


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_python_file_that_a_doc_names_exists(doc: Path) -> None:
    named = re.findall(r"`([\w./*-]+\.py)`", doc.read_text(encoding="utf-8"))
    assert [name for name in named if not _is_there(name)] == []


def test_modules_name_files_that_exist() -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in re.findall(r"`([\w./*-]+\.py)`", path.read_text(encoding="utf-8"))
        if not _is_there(name)
    }
    assert wrong == set()


def test_the_reference_of_commands_names_each_flag_and_no_other() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named == {*_flags(command_line()), "--help"}
