"""The flags of `up` and `join`."""

from typing import Annotated

import typer

ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Name or id in the swarm, folder, hub id; else by need.")
]
NameFlag = Annotated[
    str | None, typer.Option("--name", help="What others see; else the last run's or the host's name.")
]
LayersFlag = Annotated[
    str | None,
    typer.Option("--layers", help="all, 0:4, embed+0:4 or 4:8+head; else those that the swarm lacks most."),
]
RebalanceFlag = Annotated[
    bool | None,
    typer.Option("--rebalance/--no-rebalance", help="Without --layers: take others when the swarm lacks them more."),
]
DtypeFlag = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 or auto.")]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or auto.")]
MemoryFlag = Annotated[str | None, typer.Option("--max-memory", help="For weights and sessions: 8GB or 50%.")]
ThreadsFlag = Annotated[int | None, typer.Option("--threads", help="Compute threads on the CPU.")]
HostFlag = Annotated[str | None, typer.Option("--host", help="Address to listen on for peers; 127.0.0.1 stays here.")]
PortFlag = Annotated[int | None, typer.Option("--port", help="Port for peers; else any free one.")]
AnnounceFlag = Annotated[
    list[str] | None, typer.Option("--announce", help="Address that others shall use, /ip4/.../tcp/...; repeatable.")
]
RelayFlag = Annotated[
    list[str] | None, typer.Option("--relay", help="Trusted relay, /ip4/.../tcp/.../p2p/...; repeatable.")
]
NatFlag = Annotated[bool | None, typer.Option("--nat/--no-nat", help="Ask the router for a port; use and be a relay.")]
ApiHostFlag = Annotated[str | None, typer.Option("--api-host", help="Address of the HTTP API; 127.0.0.1.")]
ApiPortFlag = Annotated[int | None, typer.Option("--api-port", help="Port of the HTTP API; 8411 or any free one.")]
SwarmNameFlag = Annotated[str | None, typer.Option("--swarm-name", help="Name of a swarm that is founded now.")]
PublicFlag = Annotated[bool | None, typer.Option("--public", help="Found a swarm that anybody may join.")]
GatewayFlag = Annotated[bool | None, typer.Option("--gateway-only", help="Host no layers; only answer the API.")]
LedgerFlag = Annotated[
    bool | None, typer.Option("--ledger/--no-ledger", help="Keep receipts of what is served and used; off.")
]
KvDiskFlag = Annotated[
    str | None, typer.Option("--kv-disk", help="Disk for KV caches that outlive their session: 10GB or 20%; none.")
]
StandbyMemoryFlag = Annotated[
    str | None, typer.Option("--standby-memory", help="For snapshots of other nodes' sessions: 256MiB or 1%.")
]
DrainLimitFlag = Annotated[
    float | None, typer.Option("--drain-limit", help="Seconds to move running sessions when it is stopped; 10.")
]
FollowFlag = Annotated[
    str | None, typer.Option("--follow", metavar="RUN", help="Serve the newest outer parameters of this training run.")
]
UploadFlag = Annotated[
    str | None,
    typer.Option("--upload-limit", help="For weights that others fetch from here: 20 Mbit/s; 0 gives none."),
]
DetachFlag = Annotated[bool, typer.Option("--detach", "-d", help="Start in the background; return when it is ready.")]
