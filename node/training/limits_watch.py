"""The real machine behind the limits: the clock, the load by others, pause and resume, and memory."""

import os
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import anyio
import psutil

from shoal.swarm.errors import OutOfMemory

from .limits import IdleJudge, LimitSettings, reason_to_wait
from .limits_units import memory_bytes

LOOK_S = 2.0


class OthersLoad:
    """The share of all cores that programs other than this process have used since the last look."""

    def __init__(self) -> None:
        self._mine = psutil.Process()
        self._last = self._times()

    def share(self) -> float:
        before, self._last = self._last, self._times()
        wall = (self._last[0] - before[0]) * (os.cpu_count() or 1)
        if wall <= 0:
            return 0.0
        return max(0.0, (self._last[1] - before[1] - (self._last[2] - before[2])) / wall)

    def _times(self) -> tuple[float, float, float]:
        """Seconds: of the wall, of all processors busy, of this process with its children."""
        every = psutil.cpu_times()
        busy = sum(every) - every.idle - getattr(every, "iowait", 0.0) - getattr(every, "guest", 0.0)
        mine = self._mine.cpu_times()
        ours = mine.user + mine.system + mine.children_user + mine.children_system
        return time.perf_counter(), busy, ours + _children_s(self._mine)


def _children_s(process: psutil.Process) -> float:
    """Of children that still run, the daemon above all."""
    total = 0.0
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


class LimitWatch:
    """Training waits in `allowed` while the limits say no."""

    def __init__(
        self,
        settings: LimitSettings,
        load: Callable[[], float] | None = None,
        clock: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.paused = False
        self._settings = settings
        self._load = load or (OthersLoad().share if settings.idle_only else lambda: 0.0)
        self._clock = clock or (lambda: datetime.now().astimezone())
        self._monotonic, self._sleep = monotonic, sleep
        self._judge = IdleJudge()

    def reason(self) -> str:
        """Why not to train now; "" for go on. Looks at the machine only as often as is useful."""
        return reason_to_wait(self._settings, self.paused, self._clock(), self._judge.idle(self._monotonic()))

    async def watch(self) -> None:
        """Runs beside the training."""
        while self._settings.idle_only:
            self._judge.observe(self._load(), self._monotonic())
            await self._sleep(LOOK_S)

    async def allowed(self, told: Callable[[str], None]) -> None:
        """Returns when training may go on. told: hears the reason to wait, once for each new one, and "" at the end"""
        last = ""
        while reason := self.reason():
            if reason != last:
                told(reason)
                last = reason
            await self._sleep(0.2)
        if last:
            told("")


def refuse_memory(settings: LimitSettings, needed: int, what: str) -> None:
    """raises: OutOfMemory when training would need more than the volunteer gives, or than there is"""
    memory = psutil.virtual_memory()
    limit = memory_bytes(settings.memory, memory.total) if settings.memory else memory.available
    if needed > limit:
        given = "limits.memory gives" if settings.memory else "this machine has free"
        raise OutOfMemory(
            f"{what} needs about {needed / 1e9:.2f} GB, {given} {limit / 1e9:.2f} GB; "
            "use a smaller batch.micro, batch.checkpointing or a smaller model"
        )


def too_much_used(settings: LimitSettings) -> bool:
    """This process holds more memory than limits.memory gives."""
    if not settings.memory:
        return False
    return bool(psutil.Process().memory_info().rss > memory_bytes(settings.memory, psutil.virtual_memory().total))
