"""`shoal up`: start a node of this home's swarm, or found one."""

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
    PublicFlag,
    RebalanceFlag,
    RelayFlag,
    StandbyMemoryFlag,
    SwarmNameFlag,
    ThreadsFlag,
    UploadFlag,
)


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal up Qwen/Qwen3-0.6B --layers embed+0:14 --max-memory 4GB")(up)


def up(
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
    swarm_name: SwarmNameFlag = None,
    public: PublicFlag = None,
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
    """Start a node: in the swarm of this home, or in a new private one.

    Every flag can also stand in config.toml in the home folder (max_memory = "8GB") or in the environment
    (SHOAL_MAX_MEMORY=8GB).
    """
    flags = {key: value for key, value in locals().items() if key not in ("detach", "home", "json")}
    from .node_start import start

    start(home, flags, None, detach=detach, json=json)
