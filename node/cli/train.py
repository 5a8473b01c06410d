"""`shoal train`: train a model together with others, as a member of a swarm."""

from pathlib import Path
from typing import Annotated

import typer

from .flags import HomeFlag, JsonFlag
from .node_flags import (
    AnnounceFlag,
    ApiHostFlag,
    ApiPortFlag,
    HostFlag,
    LedgerFlag,
    NameFlag,
    NatFlag,
    PortFlag,
    PublicFlag,
    RelayFlag,
    SwarmNameFlag,
)

ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="A TOML file; docs/reference says what it holds.")
]
InviteFlag = Annotated[
    str | None, typer.Option("--invite", help="Join the swarm of this line first, or - to read it from stdin.")
]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint here, if there is one.")]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Print plan, bytes a round and expected time; train nothing.")
]
StageFlag = Annotated[
    int | None, typer.Option("--stage", min=0, help="The stage of a [pipeline] that this node holds, instead of auto.")
]
PauseFlag = Annotated[bool, typer.Option("--pause", help="Tell the training that runs here to pause.")]
ContinueFlag = Annotated[bool, typer.Option("--continue", help="Tell the training that runs here to go on.")]
CheckFlag = Annotated[
    list[Path] | None,
    typer.Option(
        "--check",
        help="Check a run's open record, or several against one another; of a run's folder, do the rounds again, "
        "with CONFIG from the beginning.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal train novels.toml --invite shoal1:q83vASNF...")(train)


def train(
    config: ConfigArgument = None,
    dry_run: DryRunFlag = False,
    resume: ResumeFlag = False,
    stage: StageFlag = None,
    invite: InviteFlag = None,
    pause: PauseFlag = False,
    go_on: ContinueFlag = False,
    check: CheckFlag = None,
    name: NameFlag = None,
    host: HostFlag = None,
    port: PortFlag = None,
    announce: AnnounceFlag = None,
    relay: RelayFlag = None,
    nat: NatFlag = None,
    api_host: ApiHostFlag = None,
    api_port: ApiPortFlag = None,
    swarm_name: SwarmNameFlag = None,
    public: PublicFlag = None,
    ledger: LedgerFlag = None,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Train a model together with all peers of this home's swarm that have the same config.

    Peers may come and go; every one holds the same parameters after each round. When a node runs in this home, it
    trains; else one is started that does nothing else. Ctrl-C stops cleanly: what was learned in whole rounds is kept,
    and --resume goes on from there.
    """
    flags = {
        "name": name,
        "host": host,
        "port": port,
        "announce": announce,
        "relay": relay,
        "nat": nat,
        "api_host": api_host,
        "api_port": api_port,
        "swarm_name": swarm_name,
        "public": public,
        "ledger": ledger,
    }
    from shoal.node.training.config_file import read_config
    from shoal.swarm.errors import UsageError
    from shoal.swarm.home import Home

    from .output import Output

    place, output = Home.find(home), Output(json)
    if check:
        from .train_control import check_records

        check_records(check, None if config is None else read_config(config), place, output)
        return
    if pause or go_on:
        from .train_control import tell_training

        tell_training(place, output, pause=pause)
        return
    if config is None:
        raise UsageError("name the config of the training: shoal train CONFIG")
    file = read_config(config)
    if stage is not None:
        from shoal.node.training.config_file import with_stage

        file = with_stage(file, stage)
    from .node_api import running_api

    node = None if dry_run or invite else running_api(place)
    if node is not None and stage is not None:
        raise UsageError("a node runs in this home and trains by itself: write pipeline.stage into the config instead")
    if node is not None:
        from .train_here import train_here

        raise typer.Exit(train_here(node, config, file, output, resume=resume))
    from .invite_text import read_line
    from .train_run import start

    start(place, file, flags, read_line(invite) if invite else None, output, resume=resume, dry_run=dry_run)
