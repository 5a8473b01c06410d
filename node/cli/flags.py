"""The flags that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

HomeFlag = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="The node's data folder; else SHOAL_HOME, else the user's own."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print events as JSON, one object a line.")]
