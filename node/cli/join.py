"""`shoal join`: enter a swarm with an invite and start a node there."""

from typing import Annotated

import typer

from .flags import HomeFlag, JsonFlag
from .node_flags import (
    AnnounceFlag,
    ApiHostFlag,
    ApiPortFlag,
    DetachFlag,
    DeviceFlag,
    DrainLimitFlag,
    DtypeFlag,
    FollowFlag,
    GatewayFlag,
    HostFlag,
    KvDiskFlag,
    LayersFlag,
    LedgerFlag,
    MemoryFlag,
    ModelArgument,
    NameFlag,
    NatFlag,
    PortFlag,
    RebalanceFlag,
    RelayFlag,
    StandbyMemoryFlag,
    ThreadsFlag,
    UploadFlag,
)

InviteArgument = Annotated[str, typer.Argument(help="The line that begins with shoal1:, or - to read it from stdin.")]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal join shoal1:q83vASNF... --max-memory 50%")(join)


def join(
    invite: InviteArgument,
    model: ModelArgument = None,
    name: NameFlag = None,
    layers: LayersFlag = None,
    rebalance: RebalanceFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    max_memory: MemoryFlag = None,
    threads: ThreadsFlag = None,
    host: HostFlag = None,
    port: PortFlag = None,
    announce: AnnounceFlag = None,
    relay: RelayFlag = None,
    nat: NatFlag = None,
    api_host: ApiHostFlag = None,
    api_port: ApiPortFlag = None,
    gateway_only: GatewayFlag = None,
    follow: FollowFlag = None,
    upload_limit: UploadFlag = None,
    ledger: LedgerFlag = None,
    kv_disk: KvDiskFlag = None,
    standby_memory: StandbyMemoryFlag = None,
    drain_limit: DrainLimitFlag = None,
    detach: DetachFlag = False,
    home: HomeFlag = None,
    json: JsonFlag = False,
) -> None:
    """Join a swarm with an invite and start a node there.

    The home remembers the swarm: next time `shoal up` is enough.
    """
    flags = {key: value for key, value in locals().items() if key not in ("invite", "detach", "home", "json")}
    from .invite_text import read_line
    from .node_start import start

    start(home, flags, read_line(invite), detach=detach, json=json)
