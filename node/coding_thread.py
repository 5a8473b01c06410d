"""A thread for what takes long beside a device: one call after the other, so that one call's memory is all it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shoal.swarm.errors import LocalFault, ShoalError

from .device_thread import DeviceThread, Next, Reply, deliver

R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    action: Callable[[], object]
    reply: Reply


class CodingThread:
    """Starts with the first call. `stop` it before dropping it; calls after that fail."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: DeviceThread[_Call] | None = None
        self._over: LocalFault | None = None

    async def run(self, action: Callable[[], R]) -> R:
        """raises: what the action raises, when it is a ShoalError; else LocalFault"""
        if self._over is not None:
            raise self._over
        if self._thread is None:
            self._thread = DeviceThread(self._name, self._turn, self._ended)
        reply = Reply()
        self._thread.post(_Call(action, reply))
        if self._over is not None:  # it ended between the check and the post
            raise self._over
        result: R = await reply.wait()
        return result

    def stop(self, timeout_s: float) -> None:
        self._over = LocalFault("the engine was stopped")
        if self._thread is not None:
            self._thread.stop(timeout_s)

    def _turn(self, calls: list[_Call]) -> Next:
        for call in calls:
            if not call.reply.abandoned:
                deliver([_outcome(call)])
        return Next(busy=False)

    def _ended(self, error: BaseException | None) -> None:
        self._over = self._over or LocalFault(f"the coding thread died: {type(error).__name__}: {error}")
        left = self._thread.leftovers() if self._thread is not None else []
        deliver(call.reply.settle(error=self._over) for call in left)


def _outcome(call: _Call) -> Reply:
    try:
        return call.reply.settle(call.action())
    except ShoalError as error:
        return call.reply.settle(error=error)
    except MemoryError as error:
        return call.reply.settle(error=LocalFault(f"no memory: {error}"))
    except Exception as error:  # noqa: BLE001  a bug in one call must not end the thread for the others
        return call.reply.settle(error=LocalFault(f"{type(error).__name__}: {error}"))
