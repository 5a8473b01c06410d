"""Work behind the inner steps' back: one thread, in order, and never more than a little waits."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

MOST_WAITING = 6  # two jobs a state: so up to three states are held beside the model


class Behind:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "shoal-claims")
        self._room = threading.Semaphore(MOST_WAITING)

    def do(self, work: Callable[[], None]) -> None:
        """Waits for room. work: must not raise"""
        self._room.acquire()

        def done() -> None:
            try:
                work()
            finally:
                self._room.release()

        self._pool.submit(done)

    def settle(self) -> None:
        """Returns when all that was asked for so far is done."""
        self._pool.submit(lambda: None).result()

    def close(self) -> None:
        self._pool.shutdown()
