"""One thread for all that a stage computes; backward passes go first, so that no more microbatches wait than must."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from shoal.node.device_thread import DeviceThread, Next, Reply, deliver
from shoal.swarm.errors import LocalFault

Result = TypeVar("Result")
BACKWARD, FORWARD, STEP = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Job:
    urgency: int
    run: Callable[[], Any]
    reply: Reply


class ComputeThread:
    def __init__(self, name: str) -> None:
        self._waiting: list[tuple[int, int, _Job]] = []
        self._numbers = count()
        self._ended = False
        self._thread: DeviceThread[_Job] = DeviceThread(name, self._turn, self._end)

    async def run(self, work: Callable[[], Result], urgency: int) -> Result:
        """What `work` returns; a job whose caller has gone is left out. raises: as `work`; LocalFault when closed"""
        if self._ended:
            raise LocalFault("this stage has stopped computing")
        reply = Reply()
        self._thread.post(_Job(urgency, work, reply))
        result: Result = await reply.wait()
        return result

    def close(self) -> None:
        self._ended = True
        self._thread.stop(5.0)

    def _turn(self, jobs: list[_Job]) -> Next:
        for job in jobs:
            heapq.heappush(self._waiting, (job.urgency, next(self._numbers), job))
        if self._waiting:
            _, _, job = heapq.heappop(self._waiting)
            if not job.reply.abandoned:
                deliver([_settled(job)])
        return Next(busy=bool(self._waiting))

    def _end(self, error: BaseException | None) -> None:
        self._ended = True
        fault = LocalFault("this stage has stopped computing" + (f": {error}" if error else ""))
        left = [job for _, _, job in self._waiting] + self._thread.leftovers()
        deliver([job.reply.settle(error=fault) for job in left])


def _settled(job: _Job) -> Reply:
    try:
        return job.reply.settle(job.run())
    except Exception as error:  # noqa: BLE001  raised again where the job came from
        return job.reply.settle(error=error)
