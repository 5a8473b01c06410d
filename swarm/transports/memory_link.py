"""What a simulated wire does to bytes: latency, jitter, bandwidth, loss and cuts, all drawn from one seed."""

import math
import random
from dataclasses import dataclass

import anyio
from anyio.lowlevel import checkpoint

from shoal.swarm.identifiers import PeerId


@dataclass(frozen=True, slots=True)
class Conditions:
    """How every link of a network behaves. The defaults are those of peers across one continent."""

    latency_s: tuple[float, float] = (0.005, 0.05)  # one way, drawn once per pair of peers
    jitter_s: float = 0.0  # at most this much more, drawn per frame; frames of a stream stay in order
    call_loss: float = 0.0  # probability that a request vanishes, and again that its answer does
    break_probability: float = 0.0  # per frame: the stream breaks instead of carrying it
    bandwidth_byte_s: float = math.inf  # per direction of a pair
    window_bytes: int = 1 << 20  # sent and not yet read, per direction of a stream; more makes the sender wait
    cut_detection_s: float = 1.0  # until both ends of a stream notice that their link was cut
    ack_timeout_s: float = 5.0  # how long `close` waits for the peer's ACK


ONE_CONTINENT = Conditions()


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one peer put on the wire for another: stream frames and call messages, lost ones included."""

    frames: int = 0
    payload_bytes: int = 0


class Host:
    """The fate of one peer's process: running, hung (nothing comes in or goes out), or dead."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.dead = anyio.Event()
        self._awake = anyio.Event()
        self._awake.set()

    def hang(self) -> None:
        if self._awake.is_set():
            self._awake = anyio.Event()

    def resume(self) -> None:
        self._awake.set()

    def die(self) -> None:
        self.dead.set()
        self._awake.set()

    async def awake(self) -> None:
        """Return once the process is not hung."""
        await checkpoint()
        while not self._awake.is_set():
            await self._awake.wait()


class Link:
    """One direction between two peers. Its draws depend on the seed and on what it carried before."""

    def __init__(self, seed: int, sender: PeerId, receiver: PeerId, conditions: Conditions) -> None:
        self.conditions = conditions
        self.traffic = Traffic()
        self.cut = False
        pair = "/".join(sorted((sender, receiver)))
        self.latency_s = random.Random(f"{seed}/{pair}").uniform(*conditions.latency_s)
        self._random = random.Random(f"{seed}/{sender}>{receiver}")
        self._free_at = -math.inf

    def carry(self, payload_bytes: int, now: float) -> float:
        """When a message of this size that is sent now arrives."""
        self.traffic = Traffic(self.traffic.frames + 1, self.traffic.payload_bytes + payload_bytes)
        self._free_at = max(now, self._free_at) + payload_bytes / self.conditions.bandwidth_byte_s
        return self._free_at + self.latency_s + self._random.uniform(0.0, self.conditions.jitter_s)

    def loses_call(self) -> bool:
        return self.cut or self._random.random() < self.conditions.call_loss

    def breaks_stream(self) -> bool:
        return self._random.random() < self.conditions.break_probability
