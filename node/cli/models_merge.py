"""`shoal models merge`: one model made of several."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shoal.swarm.errors import UsageError

from .flags import HomeFlag, JsonFlag
from .output import Output

Method = Literal["average", "task-arithmetic", "slerp"]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal models merge ./monday ./tuesday --out ./both --weights 1,3")(merge)


def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, hub ids, or the embedded model.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder for the merged model.")],
    method: Annotated[Method, typer.Option("--method", help="How tensors are mixed.")] = "average",
    weights: Annotated[
        str | None, typer.Option("--weights", help="One number for each model, with commas: 1,2 or 0.5,-0.5.")
    ] = None,
    at: Annotated[float, typer.Option("--at", help="slerp: from 0, the first model, to 1, the second.")] = 0.5,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="task-arithmetic: what the models were trained from.")
    ] = None,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Make one model of several that share architecture and vocabulary.

    average: the weighted mean. task-arithmetic: the base, plus what each model has learned beyond it, weighted.
    slerp: a point on the arc between two models.
    """
    numbers = _numbers(weights)
    if method == "slerp" and numbers:
        raise UsageError("slerp takes --at, not --weights")
    from shoal.node.model_source import resolve
    from shoal.node.training.merging import Average, Merge, Slerp, TaskArithmetic
    from shoal.node.training.merging_models import merge_models
    from shoal.swarm.home import Home

    output = Output(json)
    ways: dict[str, Merge] = {
        "average": Average(numbers),
        "task-arithmetic": TaskArithmetic(numbers),
        "slerp": Slerp(at),
    }
    chosen = ways[method]
    chosen.check(len(models), base=base is not None)
    cache = Home.find(home).cache
    found = [resolve(model, cache) for model in models]
    root = None if base is None else resolve(base, cache)
    for model in (*found, *([] if root is None else [root])):
        model.fetch()
    merge_models(found, out, chosen, root)
    output.event("merged", folder=str(out), method=method, models=models)
    output.line(str(out))
    output.note(f"merged {len(models)} models; `shoal up {out}` serves it")


def _numbers(text: str | None) -> tuple[float, ...]:
    """raises: UsageError"""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"--weights {text}: write numbers with commas between, such as 1,2") from error
