"""`shoal version`: what is installed here."""

import platform
from importlib import metadata

import typer

import shoal

from .flags import JsonFlag
from .output import Output

PARTS = ("torch", "transformers", "hivemind")


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal version --json")(version)


def version(json: JsonFlag = False) -> None:
    """Print the versions of shoal and of the parts that matter for a bug report."""
    from shoal.swarm.identifiers import PROTOCOL_VERSION

    output = Output(json)
    parts = {name: _installed(name) for name in PARTS}
    python = platform.python_version()
    output.event("version", version=shoal.__version__, protocol=PROTOCOL_VERSION, python=python, parts=parts)
    output.line(f"shoal {shoal.__version__} (protocol {PROTOCOL_VERSION}, Python {python})")
    for name, number in parts.items():
        output.line(f"{name} {number or 'is not installed'}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
