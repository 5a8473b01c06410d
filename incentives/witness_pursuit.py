"""The shell around `witness_quest.WitnessQuest`: all witnesses are asked at once, and nobody is waited for too long."""

from collections.abc import Awaitable, Callable

import anyio

from shoal.swarm.errors import ShoalError

from .gossip_messages import Cosigned
from .witness_quest import AskWitness, WitnessQuest

WITNESSED_S = 10.0  # until an author gives up on its witnesses
LINGER_S = 0.25  # for the signatures of the others, when there are enough


async def pursue(quest: WitnessQuest, call: Callable[[AskWitness], Awaitable[Cosigned]]) -> None:
    """Until the quest has its result, or has failed, or time is up. call: raises ShoalError"""
    enough, complete = anyio.Event(), anyio.Event()

    async def ask_on(ask: AskWitness) -> None:
        asks = [ask]
        while asks:
            ask = asks.pop()
            try:
                answer = await call(ask)
            except ShoalError as error:
                quest.unanswered(ask.peer, str(error))
                break
            asks += quest.answered(ask.peer, answer)
        if quest.result is not None or quest.complete:
            enough.set()
        if quest.complete:
            complete.set()

    with anyio.move_on_after(WITNESSED_S):
        async with anyio.create_task_group() as tasks:
            for ask in quest.begin():
                tasks.start_soon(ask_on, ask)
            if not quest.complete:
                await enough.wait()
                with anyio.move_on_after(LINGER_S):
                    await complete.wait()
            tasks.cancel_scope.cancel()
