"""`shoal kv`: what a model's KV caches are compressed by, and those that a node keeps."""

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.swarm.manifest import KV_PROFILE

from .flags import HomeFlag, JsonFlag
from .output import Output

FETCH_S = 600.0  # over a slow link


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Make the profiles by which KV caches are compressed; see to the caches that a node keeps.",
        no_args_is_help=True,
    )
    group.command(epilog="Example: shoal kv calibrate ./my-model *.txt --out my-model.kvprofile")(calibrate)
    group.command(epilog="Example: shoal kv stat --json")(stat)
    group.command(epilog="Example: shoal kv fetch - < system-prompt.txt")(fetch)
    group.command(epilog="Example: shoal kv drop --private")(drop)
    app.add_typer(group, name="kv")


def calibrate(
    model: Annotated[Path, typer.Argument(help="A model folder with its tokenizer.", exists=True, file_okay=False)],
    texts: Annotated[
        list[Path], typer.Argument(help="Text files such as the model will be used on.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the profile goes.")] = Path(KV_PROFILE),
    documents: Annotated[
        int, typer.Option(min=5, help="Stretches of text to read, a fifth of them for checking.")
    ] = 60,
    tokens: Annotated[int, typer.Option(min=128, help="Tokens of each.")] = 576,
    joint: Annotated[
        bool | None, typer.Option(help="One transform for all heads of a layer; else by its width.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="One transform for keys and values: smaller caches, slower to code.")
    ] = False,
    backward: Annotated[bool, typer.Option(help="Learn from gradients; without, from forward passes alone.")] = True,
    json: JsonFlag = False,
) -> None:
    """Run a model over text and write the profile that compresses its KV caches.

    In the model's folder, as kv.profile, it goes where the model goes: `shoal up`, `shoal models publish`, a hub.
    """
    from shoal.node.kv_calibration import calibrate_files
    from shoal.swarm import private_file
    from shoal.swarm.errors import UsageError

    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageError(f"cannot write {out}: there is no folder {out.parent} that may be written to")
    output = Output(json)
    output.note("this takes minutes for a small model")
    try:
        profile = calibrate_files(model, texts, documents, tokens, joint=joint, together=together, backward=backward)
    except (ValueError, OSError) as error:
        raise UsageError(str(error).partition("\n")[0]) from error
    private_file.write(out, profile.packed)
    output.event("kv_profile", path=str(out), digest=profile.digest.hex(), payload_bytes=len(profile.packed))
    if out.resolve() != (model / KV_PROFILE).resolve():
        output.note(f"in {model} as {KV_PROFILE} it travels with the model, which then has another id")
    output.line(f"{out}  {len(profile.packed)} bytes  {profile.digest.hex()}")


def stat(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Show what the running node keeps of past sessions' KV, and what came of it."""
    from .node_api import NodeApi
    from .table import show_table

    output = Output(json)
    told = NodeApi.of(home).get("/kv")
    output.event("kv", **told)
    rows: list[list[object]] = []
    for tier in ("memory", "disk"):
        use = told[tier]
        rows.append([tier, use["chunks"], f"{use['used_bytes'] / 1e6:.1f} MB", f"{use['budget_bytes'] / 1e6:.0f} MB"])
    show_table(output, ["tier", "chunks", "used", "of"], rows)
    counts = told["counts"]
    output.line(
        f"chunks of 64 tokens since the start: {counts['kept']} kept, {counts['reused']} used again, "
        f"{counts['fetched']} fetched ({counts['fetched_bytes'] / 1e6:.1f} MB), "
        f"{counts['given']} given ({counts['given_bytes'] / 1e6:.1f} MB), "
        f"{counts['audited']} checked, {counts['false']} false"
    )


def fetch(
    prompt: Annotated[str, typer.Argument(help="The text whose beginning others may have shared, or - for stdin.")],
    level: Annotated[str, typer.Option("--level", help="lossless, near-lossless, default or small.")] = "lossless",
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Take the KV of a shared prefix from the peers that have it, before anybody asks this node for it."""
    import sys

    from shoal.compression.kv_levels import QUALITIES
    from shoal.swarm.errors import UsageError

    from .node_api import NodeApi

    if level not in QUALITIES:
        raise UsageError(f"--level takes {', '.join(QUALITIES)}, not {level!r}")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise UsageError("the prompt must not be empty")
    told = NodeApi.of(home, FETCH_S).ask("POST", "/kv/fetch", {"prompt": text, "level": level})
    output = Output(json)
    output.event("kv_fetched", **told)
    output.line(f"{told['fetched']} chunks came; {told['held']} of {told['chunks']} are held")


def drop(
    private: Annotated[bool, typer.Option("--private", help="Those of named sessions only.")] = False,
    taken: Annotated[bool, typer.Option("--taken", help="Those that came from other peers only.")] = False,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Forget the KV that the running node keeps, in memory and on disk."""
    from shoal.swarm.errors import UsageError

    from .node_api import NodeApi

    if private and taken:
        raise UsageError("give --private or --taken, or neither for all")
    which = "private" if private else "taken" if taken else "all"
    told = NodeApi.of(home).ask("POST", "/kv/drop", {"which": which})
    output = Output(json)
    output.event("kv_dropped", **told)
    output.line(f"{told['dropped']} chunks were dropped")
