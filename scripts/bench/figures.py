"""A figure of a benchmark, written the same way each time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def drawn_to(path: Path, across: str, up: str) -> Iterator[Any]:
    """Axes to draw on, labelled; on leaving, the file is written with a legend and without a date."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    yield axes
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
