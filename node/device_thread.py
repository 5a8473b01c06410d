"""One thread per compute device, and the way between it and event loops.

The thread owns everything on the device. Commands go in through a queue; answers go back as futures of the caller's own
event loop, all those of one turn in one wake-up per loop. asyncio is named here because the futures are its own.

A turn that is over in no time may run on the caller's thread instead (`take_here`): two changes of thread, each with a
wake-up and a wait for the interpreter's lock, cost .1 to .2 ms, as much as a layer of a small model.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Command = TypeVar("Command")


@dataclass(frozen=True, slots=True)
class Next:
    """How to go on after a turn."""

    busy: bool  # there is more to do: do not wait for commands
    expected: int = 0  # as many commands may come in a burst
    linger_s: float = 0.0  # the longest pause between two of them that is worth waiting


Turn = Callable[[list[Command]], Next]  # takes the new commands
Ended = Callable[[BaseException | None], None]


class Reply:
    """The answer that one caller waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._outcome: tuple[Any, BaseException | None] = (None, None)

    async def wait(self) -> Any:  # noqa: ANN401  the caller knows what it asked for
        return await self._future

    def settle(self, result: object = None, error: BaseException | None = None) -> "Reply":
        """On the device thread; `deliver` then tells the caller."""
        self._outcome = (result, error)
        return self

    @property
    def abandoned(self) -> bool:
        """The caller was cancelled while it waited."""
        return self._future.cancelled()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def hand_over(self) -> None:
        """On the caller's loop."""
        if not self._future.done():
            result, error = self._outcome
            if error is None:
                self._future.set_result(result)
            else:
                self._future.set_exception(error)


def deliver(replies: Iterable[Reply]) -> None:
    """Wake each caller's loop once; a caller on this very thread needs no wake-up."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Reply]] = {}
    for reply in replies:
        by_loop.setdefault(reply.loop, []).append(reply)
    here = asyncio._get_running_loop()  # noqa: SLF001  None, where the public function raises
    for loop, group in by_loop.items():
        if loop is here:
            _hand_over(group)
            continue
        try:
            loop.call_soon_threadsafe(_hand_over, group)
        except RuntimeError:
            continue  # that loop is closed: nobody waits any more


def _hand_over(group: list[Reply]) -> None:
    for reply in group:
        reply.hand_over()


class DeviceThread(Generic[Command]):
    """Calls `turn` with what has come in, for ever, on one thread of its own."""

    def __init__(self, name: str, turn: Turn[Command], ended: Ended) -> None:
        """ended: called on the thread at its end, with the error if `turn` raised; `leftovers` says what is undone."""
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._turn, self._ended = turn, ended
        self._unread: list[Command] = []
        self._turning = threading.Lock()  # whoever holds it owns the device
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def post(self, command: Command) -> None:
        self._inbox.put(command)

    def take_here(self, command: Command) -> bool:
        """Run a turn for one command on the calling thread, if nothing else runs or waits. returns: whether it ran

        Only for a command whose turn leaves nothing to do, so that the device thread need not be woken for the rest.
        An error in the turn ends the device thread, as it would there.
        """
        if not self._turning.acquire(blocking=False):
            return False
        try:
            if not self._inbox.empty():
                return False
            self._turn([command])
        except BaseException as caught:  # noqa: BLE001  the thread tells all who wait, and this caller among them
            self._error = caught
            self._inbox.put(None)
        finally:
            self._turning.release()
        return True

    def stop(self, timeout_s: float) -> bool:
        """Let the running turn finish, end the thread; False when it did not end in time."""
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def leftovers(self) -> list[Command]:
        """Commands that no turn has taken. Only for `ended`."""
        self._read(Next(busy=True))
        taken, self._unread = self._unread, []
        return taken

    def _main(self) -> None:
        try:
            then = Next(busy=False)
            while self._read(then):
                commands, self._unread = self._unread, []
                with self._turning:
                    then = self._turn(commands)
        except BaseException as caught:  # noqa: BLE001  whoever waits for this thread has to be told, whatever it was
            self._error = caught
        self._ended(self._error)

    def _read(self, then: Next) -> bool:
        """Read all of the inbox; waits for something unless busy, and then for what is expected. False: stop."""
        try:
            while True:
                if not then.busy and not self._unread:
                    command = self._inbox.get()
                elif len(self._unread) < then.expected:
                    command = self._inbox.get(timeout=then.linger_s)
                else:
                    command = self._inbox.get_nowait()
                if command is None:
                    return False
                self._unread.append(command)
        except queue.Empty:
            return True
