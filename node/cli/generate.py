"""`shoal generate`: continue a text."""

import sys
from typing import Annotated

import typer

from .ask_flags import (
    ApiFlag,
    ExactnessFlag,
    ExcludeFlag,
    InviteFlag,
    KeepSnapshotsFlag,
    LocalLayersFlag,
    LogprobsFlag,
    MaxHopsFlag,
    MaxTokensFlag,
    MinPFlag,
    ModelFlag,
    PenaltyFlag,
    PrefillFlag,
    RouteFlag,
    SeedFlag,
    SessionFlag,
    SharePrefixFlag,
    StopFlag,
    TemperatureFlag,
    TopKFlag,
    TopPFlag,
    ask_settings,
    home_of,
    request_options,
)
from .flags import HomeFlag, JsonFlag
from .output import Output

TEMPERATURE = 0.0
USUAL_TOKENS = 256
NOT_TEXT = "the prompt is not valid UTF-8"


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal generate 'It was a dark and' --max-tokens 64 --route")(generate)


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue, or - to read it from stdin.")],
    model: ModelFlag = None,
    max_tokens: MaxTokensFlag = None,
    temperature: TemperatureFlag = None,
    top_p: TopPFlag = None,
    top_k: TopKFlag = None,
    min_p: MinPFlag = None,
    repetition_penalty: PenaltyFlag = None,
    seed: SeedFlag = None,
    stop: StopFlag = None,
    logprobs: LogprobsFlag = None,
    local_layers: LocalLayersFlag = None,
    max_hops: MaxHopsFlag = None,
    exactness: ExactnessFlag = None,
    prefill: PrefillFlag = None,
    keep_snapshots: KeepSnapshotsFlag = None,
    exclude: ExcludeFlag = None,
    share_prefix: SharePrefixFlag = False,
    session: SessionFlag = "",
    route: RouteFlag = False,
    invite: InviteFlag = None,
    api: ApiFlag = None,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Continue a text with the swarm's model; through the node that runs here, or without one as a client.

    The temperature is 0 unless you say otherwise: the same prompt gives the same text. At most 256 new tokens.
    """
    flags = {
        "ask_model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "local_layers": local_layers,
        "max_hops": max_hops,
        "exactness": exactness,
        "prefill": prefill,
        "keep_snapshots": keep_snapshots,
        "api": api,
    }
    settings = ask_settings(home_of(home), flags)
    options = request_options(settings, TEMPERATURE, seed, stop, logprobs, exclude, share_prefix, session)
    text = _prompt(prompt, invite)
    from .answer_stream import Answers
    from .client_opening import open_client

    output = Output(json)
    with open_client(home, invite, settings.api, settings.api_key) as client:
        answers = Answers(client, output, options, settings.max_tokens, USUAL_TOKENS)
        result = answers.show(text)
        if logprobs is not None:
            answers.note_logprobs(result)
        if route:
            answers.note_route(result)


def _prompt(given: str, invite: str | None) -> str:
    """One newline at the end of stdin belongs to the shell, not to the text. raises: UsageError"""
    from shoal.swarm.errors import UsageError

    from .terminal_text import is_text

    if given == "-":
        if invite == "-":
            raise UsageError("stdin cannot be both the prompt and the invite; give one of them on the command line")
        try:
            given = sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(NOT_TEXT) from error
    if not given:
        raise UsageError("the prompt must not be empty")
    if not is_text(given):
        raise UsageError(NOT_TEXT)
    return given
