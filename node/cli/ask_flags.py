"""The flags of `generate` and `chat`, and the request options that they and the settings make."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shoal.node.settings import Settings
    from shoal.swarm.home import Home

ModelFlag = Annotated[str | None, typer.Option("--model", "-m", help="Name or id; else the only servable one.")]
MaxTokensFlag = Annotated[int | None, typer.Option("--max-tokens", "-n", help="At most so many new tokens.")]
TemperatureFlag = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0: the most likely token each time; higher: more varied.")
]
TopPFlag = Annotated[float | None, typer.Option("--top-p", help="Of the likeliest tokens that make up this share.")]
TopKFlag = Annotated[int | None, typer.Option("--top-k", help="Of the k likeliest tokens; 0: of all.")]
MinPFlag = Annotated[float | None, typer.Option("--min-p", help="Of those at least so likely, against the likeliest.")]
PenaltyFlag = Annotated[float | None, typer.Option("--repetition-penalty", help="Over 1 makes repetition rarer.")]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Same seed, same text; else drawn.")]
StopFlag = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; repeatable.")]
LogprobsFlag = Annotated[
    int | None, typer.Option("--logprobs", min=0, max=20, help="Log-probabilities, and so many alternatives a token.")
]
LocalLayersFlag = Annotated[
    int | None, typer.Option("--local-layers", help="Keep embedding, head and so many first layers at the own node.")
]
MaxHopsFlag = Annotated[int | None, typer.Option("--max-hops", help="Ask at most so many peers in a row; 8.")]
ExactnessFlag = Annotated[
    str | None,
    typer.Option("--exactness", help="When a peer is lost: replay (compute again), or exact or fast snapshots."),
]
KeepSnapshotsFlag = Annotated[
    bool | None, typer.Option("--keep-snapshots", help="Here, instead of at other holders of the layers.")
]
PrefillFlag = Annotated[
    str | None,
    typer.Option("--prefill", help="Who computes a long prompt for the peers that answer: auto, never, or a PeerID."),
]
ExcludeFlag = Annotated[list[str] | None, typer.Option("--exclude", help="PeerID that must not take part; repeatable.")]
SharePrefixFlag = Annotated[
    bool, typer.Option("--share-prefix", help="Let peers keep the prompt's KV, tell of it and take it from each other.")
]
SessionFlag = Annotated[
    str, typer.Option("--session", help="Peers keep KV under this name; give it again to go on. Not to be guessed.")
]
RouteFlag = Annotated[bool, typer.Option("--route", help="Show at the end which peers answered, and how fast.")]
InviteFlag = Annotated[
    str | None, typer.Option("--invite", help="Join as a client, with no node; - reads the line from stdin.")
]
ApiFlag = Annotated[
    str | None, typer.Option("--api", help="Ask this node, http://HOST:PORT; its key stands in SHOAL_API_KEY.")
]


def ask_settings(home: "Home", flags: dict[str, Any]) -> "Settings":
    """flags: by the names of the settings; raises UsageError"""
    from shoal.node.settings import load_settings

    return load_settings(home, flags)


def request_options(
    settings: "Settings",
    temperature: float,
    seed: int | None,
    stop: Sequence[str] | None,
    logprobs: int | None,
    exclude: Sequence[str] | None,
    share_prefix: bool,
    session: str,
) -> dict[str, Any]:
    """Keyword arguments of the Python client. temperature: when it is set nowhere. raises: UsageError"""
    from shoal.swarm.errors import UsageError
    from shoal.swarm.peer_id import is_peer_id
    from shoal.swarm.sessions.generation import checked_prefill

    try:
        checked_prefill(settings.prefill)
    except UsageError as error:
        raise UsageError(f"--prefill: {error}") from error
    for peer in exclude or ():
        if not is_peer_id(peer):
            raise UsageError(f"--exclude takes a PeerID, as `shoal peers` shows it, not {peer!r}")
    return {
        "model": settings.ask_model,
        "temperature": temperature if settings.temperature is None else settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "repetition_penalty": settings.repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
        "logprobs": logprobs,
        "local_layers": settings.local_layers,
        "max_hops": settings.max_hops,
        "exclude": tuple(exclude or ()),
        "prefill": settings.prefill,
        "share_prefix": share_prefix,
        "session": session,
        "exactness": settings.exactness,
        "keep_snapshots": settings.keep_snapshots,
    }


def home_of(folder: Path | None) -> "Home":
    from shoal.swarm.home import Home

    return Home.find(folder)
