"""`shoal models export`: a trained checkpoint as a Hugging Face folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shoal.swarm.errors import UsageError

from .flags import HomeFlag, JsonFlag
from .output import Output

DtypeName = Literal["float32", "bfloat16", "float16"]
DEFAULT_MODEL = "novels-6m"  # as of `shoal train`


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal models export ./run ./model --dtype bfloat16")(export)


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    model: Annotated[
        str, typer.Option("--model", help="Whose configuration and tokenizer: what the run was started from.")
    ] = DEFAULT_MODEL,
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="Of the weights in the folder.")] = "float32",
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Write the newest outer parameters of a run as a folder that transformers loads and `shoal up` serves.

    RUN may be a run in stages: what other nodes hold is fetched from them.
    """
    from shoal.node.training.checkpoints.reader import checkpoint_at
    from shoal.node.training.model_export import export_model
    from shoal.node.training.pipeline.stage_export import read_note
    from shoal.node.training.worker_model import find_model
    from shoal.swarm.home import Home

    output = Output(json)
    note = read_note(run)
    if note is not None:
        from .models_export_stages import export_stages

        export_stages(run, note, out, None if model == DEFAULT_MODEL else model, dtype, Home.find(home), output)
        return
    latest = checkpoint_at(run)
    if latest is None:
        raise UsageError(f"{run} holds no checkpoint; name a run's folder or a checkpoint in it")
    for line in latest.refused:
        output.note(line)
    snapshot = latest.snapshot
    export_model(snapshot.parameters, find_model(model, "random", Home.find(home).cache).texts, out, dtype)
    output.event("exported", folder=str(out), round=snapshot.round, state=snapshot.state.hex(), dtype=dtype)
    output.line(str(out))
    output.note(f"the model after round {snapshot.round}; `shoal up {out}` serves it")
