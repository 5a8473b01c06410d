"""`shoal kv`: what a model's KV caches are compressed by."""

from pathlib import Path
from typing import Annotated

import typer

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
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the profile goes.")] = Path("kv.profile"),
    documents: Annotated[
        int, typer.Option(min=4, help="Stretches of text to read, a fifth of them for checking.")
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
    """Run a model over text and write the profile that compresses its KV caches; it goes where the model goes."""
    from shoal.node.kv_calibration import calibrate_files
    from shoal.swarm.errors import UsageError

    output = Output(json)
    output.note("this takes minutes for a small model")
    try:
        profile = calibrate_files(model, texts, documents, tokens, joint=joint, together=together, backward=backward)
    except ValueError as error:
        raise UsageError(str(error)) from error
    out.write_bytes(profile.packed)
    output.event("kv_profile", path=str(out), digest=profile.digest.hex(), payload_bytes=len(profile.packed))
    output.line(f"{out}  {len(profile.packed)} bytes  {profile.digest.hex()}")
