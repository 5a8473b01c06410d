"""Where a swarm's ledger is gossiped."""

from shoal.swarm.identifiers import SwarmId


def topic_of(swarm: SwarmId) -> str:
    return f"shoal/ledger/{swarm}"
