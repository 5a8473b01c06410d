"""What a volunteer may choose when a node starts."""

from dataclasses import dataclass

from shoal.swarm.home import Home
from shoal.swarm.kv.cache_keeper import BUDGET_BYTES
from shoal.swarm.transfer.block_transfer_donor import DEFAULT_RATE_BYTE_S
from shoal.swarm.transports.p2pd import NetworkOptions

DEFAULT_MODEL = "novels-6m"
BY_NEED = "auto"  # the model of the swarm that lacks holders most; where nobody serves any, the default
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class NodeOptions:
    home: Home
    name: str
    model: str | None = (
        DEFAULT_MODEL  # BY_NEED, embedded name, folder, hub id, name or id in the swarm; None: a gateway
    )
    layers: str | None = None  # "all", "0:4", "embed+0:4"; None: chosen by need
    rebalance: bool = True  # layers that were chosen by need are exchanged when the swarm needs others more
    dtype: str = "auto"
    device: str = "auto"
    max_memory: str | None = None  # "8GB", "80%"
    threads: int | None = None  # compute threads; None: torch's choice
    network: NetworkOptions = NetworkOptions()  # noqa: RUF009  frozen
    api_host: str = "127.0.0.1"
    api_port: int | None = None  # None: the default port, or any free one when that is taken
    swarm_name: str | None = None  # of a swarm that is founded now
    public: bool = False
    invite: str | None = None  # join with this line instead of the swarm of this home
    ledger: bool = False  # receipts for what is served and used
    kv_disk: str | None = None  # "10GB", "20%" of what is free: for KV that outlives its session; None: none
    kv_memory: str | None = None
    drain_limit_s: float = 10.0  # that a signal leaves for moving sessions
    standby_bytes: int = BUDGET_BYTES  # of memory, for the snapshots of other nodes' caches
    upload_byte_s: float | None = DEFAULT_RATE_BYTE_S  # for weights that others fetch; None: they get none
    follow: str | None = None  # name of a training run whose newest parameters are served
