"""A stream of the simulated network: two ends that put frames into each other's inbox, with their arrival.

No task carries the frames: the reader waits until the first frame in its inbox is due. So thousands of open
streams cost nothing, and under a virtual clock a run depends on its seed alone.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from anyio.lowlevel import checkpoint

from shoal.swarm.errors import FrameTooLarge, ShoalError, StreamBroken
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import MAX_FRAME_BYTES

from .memory_link import Host, Link


@dataclass(frozen=True, slots=True)
class Break:
    """From `at` on, this end raises `error`; frames that would arrive after `lost_after` never do."""

    at: float
    lost_after: float
    error: type[ShoalError]
    text: str


class MemoryStream:
    """`transport.Stream`. One reader and one writer task at a time."""

    def __init__(self, host: Host, peer: PeerId, link: Link, finished: Callable[[], None]) -> None:
        self._host = host
        self._peer = peer
        self._link = link  # outgoing
        self._finished = finished  # tells the network that this connection needs no more care
        self._inbox: deque[tuple[float, bytes | None]] = deque()  # arrival time and frame; None is END
        self._unread_bytes = 0
        self._changed = anyio.Event()
        self._break: Break | None = None
        self._closed = False  # we sent END, or aborted
        self._ended = False  # the peer's END was read
        self._acknowledged_at = math.inf
        self._far = self

    @classmethod
    def pair(
        cls, near: Host, far: Host, there: Link, back: Link, finished: Callable[[], None]
    ) -> tuple["MemoryStream", "MemoryStream"]:
        here = cls(near, far.peer, there, finished)
        other = cls(far, near.peer, back, finished)
        here._far, other._far = other, here
        return here, other

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def me(self) -> PeerId:
        return self._host.peer

    async def send(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
        await self._host.awake()
        self._check_open()
        while not self._far.has_room(len(frame)):
            await self._wait(math.inf if self._break is None else self._break.at)
            await self._host.awake()
            self._check_open()
        if self._link.breaks_stream():
            self._break_both(f"the link to {self._peer} broke")
            self._check_open()
        self._far.put(self._link.carry(len(frame), anyio.current_time()), bytes(frame))

    async def receive(self) -> bytes | None:
        while True:
            await self._host.awake()
            now = anyio.current_time()
            if self._ended:
                return None
            if self._closed:
                self._check_open()
            lost_after = math.inf if self._break is None else self._break.lost_after
            due = self._inbox[0][0] if self._inbox else math.inf
            if due <= min(now, lost_after):
                return self._take(now)
            if self._break is not None and now >= self._break.at:
                raise self._break.error(self._break.text)
            breaks_at = math.inf if self._break is None else self._break.at
            await self._wait(min(breaks_at, due if due <= lost_after else math.inf))

    async def close(self) -> None:
        if self._closed:
            await checkpoint()
            return
        deadline = anyio.current_time() + self._link.conditions.ack_timeout_s
        try:
            with anyio.CancelScope(deadline=deadline):
                await self._host.awake()
            if not self._ended and not self._is_broken():
                self._send_end()
                await self._await_acknowledgement(deadline)
        finally:
            self._closed = True
            if not self._ended and anyio.current_time() < self._acknowledged_at:
                self._break_both(f"{self.me} gave up waiting for ACK")
            self._finished()

    def _send_end(self) -> None:
        self._closed = True
        now = anyio.current_time()
        self._far.put(self._link.carry(0, now), None)
        for due, frame in self._inbox:
            if frame is None:
                self._acknowledge(max(now, due))

    async def _await_acknowledgement(self, deadline: float) -> None:
        while anyio.current_time() < min(deadline, self._acknowledged_at) and not self._is_broken():
            breaks_at = math.inf if self._break is None else self._break.at
            await self._wait(min(deadline, self._acknowledged_at, breaks_at))

    def abort(self) -> None:
        if not self._closed and not self._ended:
            self._closed = True
            self._break_both(f"{self.me} aborted the stream")

    def break_at(self, new: Break) -> None:
        """The earliest break counts."""
        if self._break is None or new.at < self._break.at:
            self._break = new
        self.notify()

    def has_room(self, payload_bytes: int) -> bool:
        """An empty inbox takes a frame of any size."""
        window_bytes = self._link.conditions.window_bytes
        return self._closed or not self._unread_bytes or self._unread_bytes + payload_bytes <= window_bytes

    def put(self, due: float, frame: bytes | None) -> None:
        if self._inbox:
            due = max(due, self._inbox[-1][0])
        if self._closed:  # nobody reads here any more; only END still gets its ACK
            if frame is None:
                self._acknowledge(due)
            return
        self._inbox.append((due, frame))
        self._unread_bytes += len(frame or b"")
        self.notify()

    def acknowledged(self, at: float) -> None:
        self._acknowledged_at = at
        self.notify()

    def notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _take(self, now: float) -> bytes | None:
        _, frame = self._inbox.popleft()
        if frame is None:
            self._ended = True
            self._acknowledge(now)
        else:
            self._unread_bytes -= len(frame)
            self._far.notify()
        return frame

    def _acknowledge(self, at: float) -> None:
        if not self._link.cut:
            self._far.acknowledged(at + self._link.latency_s)

    def _is_broken(self) -> bool:
        return self._break is not None and anyio.current_time() >= self._break.at

    def _check_open(self) -> None:
        if self._break is not None and self._is_broken():
            raise self._break.error(self._break.text)
        if self._closed or self._ended:
            raise StreamBroken(f"the stream with {self._peer} is closed on {'our' if self._closed else 'its'} side")

    def _break_both(self, why: str) -> None:
        now = anyio.current_time()
        there = now + self._link.latency_s
        self.break_at(Break(now, -math.inf, StreamBroken, why))
        if not self._link.cut:
            self._far.break_at(Break(there, there, StreamBroken, why))
        self._finished()

    async def _wait(self, until: float) -> None:
        changed = self._changed
        with anyio.CancelScope(deadline=until):
            await changed.wait()
