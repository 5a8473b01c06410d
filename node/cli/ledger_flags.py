"""The flags that the ledger's commands share."""

from typing import Annotated

import typer

PeerFlag = Annotated[
    str | None,
    typer.Option("--peer", metavar="PEER", help="Of another peer, by its PeerID or the end of it; else this node."),
]
LastFlag = Annotated[int | None, typer.Option("--last", min=1, metavar="N", help="Only the newest so many.")]
