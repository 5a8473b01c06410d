"""`shoal chat`: talk with a model."""

from typing import Annotated

import typer

from .ask_flags import (
    ApiFlag,
    ExactnessFlag,
    ExcludeFlag,
    InviteFlag,
    KeepSnapshotsFlag,
    LocalLayersFlag,
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

TEMPERATURE = 0.8
USUAL_TOKENS = 512


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal chat --system 'Answer in one sentence.'")(chat)


def chat(
    system: Annotated[str | None, typer.Option("--system", help="What the model shall be told first.")] = None,
    model: ModelFlag = None,
    max_tokens: MaxTokensFlag = None,
    temperature: TemperatureFlag = None,
    top_p: TopPFlag = None,
    top_k: TopKFlag = None,
    min_p: MinPFlag = None,
    repetition_penalty: PenaltyFlag = None,
    seed: SeedFlag = None,
    stop: StopFlag = None,
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
    """Talk with a model; /help lists what you can type. From a pipe, each line is one turn.

    The temperature is 0.8 unless you say otherwise, as with Ollama. At most 512 new tokens a turn.
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
    options = request_options(settings, TEMPERATURE, seed, stop, None, exclude, share_prefix, session)
    from .answer_stream import Answers
    from .chat_loop import ChatLoop
    from .client_opening import open_client

    output = Output(json)
    with open_client(home, invite, settings.api, settings.api_key) as client:
        answers = Answers(client, output, options, settings.max_tokens, USUAL_TOKENS)
        ChatLoop(answers, output, system, always_route=route).run()
