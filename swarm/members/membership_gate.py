"""The gate of a node: our own certificate to show, and everybody else's to check."""

from collections.abc import Callable

from shoal.swarm.identifiers import PeerId, SwarmId

from .membership import MembershipGuard


class MembershipGate:
    """`handshake.Gate` over a `MembershipGuard`. `clock` gives unix seconds, as certificates do."""

    def __init__(self, guard: MembershipGuard, certificate: bytes, clock: Callable[[], float]) -> None:
        self.certificate = certificate
        self.guard = guard
        self._clock = clock

    @property
    def swarm(self) -> SwarmId:
        return self.guard.swarm.id

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        self.guard.admit(peer, certificate, self._clock())
