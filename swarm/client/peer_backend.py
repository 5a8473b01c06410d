"""A backend that is a member of the swarm itself: no node, no torch; ids out, ids in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from shoal.swarm.home import Home
from shoal.swarm.thin_client import thin_driver

from .backend import Backend
from .source_backend import SourceBackend


@asynccontextmanager
async def open_peer_backend(home: Home, invite: str | None) -> AsyncIterator[Backend]:
    """raises: SwarmUnreachable when the home belongs to no swarm or nobody answers; Refused; UsageError"""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            async with thin_driver(home, tasks, invite) as driver, SourceBackend(driver) as backend:
                yield backend
        except Exception as error:  # noqa: BLE001 (raised below as it is, outside the group)
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
