"""What a volunteer may choose when a node starts."""

from dataclasses import dataclass

from shoal.swarm.home import Home
from shoal.swarm.transports.p2pd import NetworkOptions

DEFAULT_MODEL = "novels-6m"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class NodeOptions:
    home: Home
    name: str
    model: str | None = DEFAULT_MODEL  # embedded name, folder or hub id; None: a gateway that hosts nothing
    layers: str | None = None  # "all", "0:4", "embed+0:4"; None: chosen by need
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
    follow: str | None = None  # name of a training run whose newest parameters are served
