"""`shoal ledger shapley`: what each participant of a training was worth, by two methods, and how well they agree."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output
from .table import show_table

if TYPE_CHECKING:
    from shoal.node.training.valuation import Valuation  # torch

HEADS = ["tokens", "shapley", "+-", "first order"]
SAMPLE = 8  # windows of a stretch that its gradient is taken over
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The config of the training, as for `shoal train`.")]
With = Annotated[
    list[Path] | None, typer.Option("--with", help="The run's folder of another peer, for its updates; repeat it.")
]
Orders = Annotated[int, typer.Option("--orders", min=2, help="Orders that are drawn at most.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Rounds that are valued, spread over the run.")]
Sequences = Annotated[int, typer.Option("--sequences", min=1, help="Of the held-out text, for each evaluation.")]
Stretches = Annotated[int, typer.Option("--data", min=0, help="Value so many stretches of the training text, too.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the orders that are drawn.")]


def register(group: typer.Typer) -> None:
    group.command(epilog="Example: shoal ledger shapley novels.toml --with /mnt/bob/novels")(shapley)


def shapley(
    config: Config,
    others: With = None,
    orders: Orders = 200,
    most: Rounds = 12,
    sequences: Sequences = 16,
    data: Stretches = 0,
    seed: Seed = 0,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Value the participants of a training by the held-out loss, in thousandths of a nat a token, summed over rounds.

    Needs what each of them offered: set output.updates = true at all of them before the training.
    """
    from shoal.node.training.config import run_folder
    from shoal.node.training.config_file import read_config
    from shoal.swarm.home import Home

    place, output = Home.find(home), Output(json)
    file = read_config(config)
    output.note("loading the model and the run")
    from shoal.node.training.valuation import value_participants, value_stretches
    from shoal.node.training.valued_run import open_run

    run = open_run(file, run_folder(file, place.root), others or [], place.cache, sequences)
    rounds = run.replay.rounds
    valued = [each for each in rounds if each.offers]
    points = run.replay.points(most)
    output.note(f"{len(valued)} of {len(rounds)} rounds have the updates of all their peers; {len(points)} are valued")
    tokens: dict[str, int] = {}
    for point in points:
        for peer, count in point.round.contributors:
            tokens[peer] = tokens.get(peer, 0) + count
    _show(output, "participant", value_participants(run.judge, points, seed, orders), tokens)
    if data:
        _show(
            output,
            "stretch",
            value_stretches(run.judge, run.text, points[len(points) // 2], data, SAMPLE, seed, orders),
            {},
        )


def _show(output: Output, what: str, found: "Valuation[Any]", tokens: Mapping[str, int]) -> None:
    rows: list[list[object]] = []
    for player, worth in sorted(found.shapley.values.items(), key=lambda item: -item[1]):
        error, first = found.shapley.errors[player], found.first_order[player]
        output.event(
            "valued", kind=what, player=player, tokens=tokens.get(player), shapley=worth, error=error, first_order=first
        )
        rows.append([str(player), tokens.get(player), 1e3 * worth, 1e3 * error, 1e3 * first])
    output.event(
        "agreement",
        kind=what,
        rank_correlation=found.agreement if isfinite(found.agreement) else None,
        total=found.total,
        orders=found.shapley.orders,
        evaluations=found.shapley.evaluations,
    )
    show_table(output, [what, *HEADS], rows)
    agreed = f"{found.agreement:+.2f}" if isfinite(found.agreement) else "no"
    output.line(
        f"thousandths of a nat; together {1e3 * found.total:.1f}. {found.shapley.orders} orders, "
        f"{found.shapley.evaluations} evaluations; rank correlation of the two methods {agreed}"
    )
