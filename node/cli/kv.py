"""`shoal kv`: what a model's KV caches are compressed by."""

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.swarm.manifest import KV_PROFILE

from .flags import JsonFlag
from .output import Output


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Make the profiles by which KV caches are compressed.", no_args_is_help=True)
    group.command(epilog="Example: shoal kv calibrate ./my-model *.txt --out my-model.kvprofile")(calibrate)
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
