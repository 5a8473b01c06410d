"""The driver's shell around standbys: opens them, keeps snapshots itself when asked to, and sends those it has."""

from collections.abc import Callable, Iterable

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.kv.cache_keeper import Kept
from shoal.swarm.kv.cache_streams import CacheReceiver, open_attached
from shoal.swarm.kv.kv_chunks import KvFormat, parse_chunk
from shoal.swarm.members.handshake import Gate
from shoal.swarm.routing.chain_plan import PlannedHop
from shoal.swarm.transport import Transport
from shoal.swarm.units import Span

from . import messages
from .hop_link import HopLink, LinkAddress
from .messages import CacheEnd, Chunk, Hold, Output, SendCache, Token
from .session_events import CacheFailed, Event, HopKey, Restore


def hop_session(name: SessionId, key: HopKey) -> SessionId:
    """What a hop or a standby calls the session `name` of its driver."""
    return SessionId(f"{name}{key:04x}")


class HeldAside:
    """name: the session's"""

    def __init__(
        self,
        name: SessionId,
        transport: Transport,
        gate: Gate,
        receiver: CacheReceiver,
        post: Callable[[Event], None],
        on_result: Callable[[HopKey, Token | Output], None],
        key_of: Callable[[SessionId], HopKey],
    ) -> None:
        self._name = name
        self._on_result = on_result
        self._key_of = key_of
        self._transport = transport
        self._gate = gate
        self._receiver = receiver
        self._post = post
        self._links: dict[HopKey, HopLink] = {}
        self._here: set[HopKey] = set()

    def keys(self) -> Iterable[HopKey]:
        return (*self._links, *self._here)

    def open(
        self, key: HopKey, at: PlannedHop, span: Span, model: ModelId, dtype: str, sender: PeerId, max_tokens: int
    ) -> tuple[HopLink, Hold]:
        """returns: a link, and what it begins with"""
        session = hop_session(self._name, key)
        address = LinkAddress(key, at.peer, at.name, span, session, at.addresses)
        link = HopLink(address, self._transport, self._gate, self._post, self._on_result, self._key_of)
        self._links[key] = link
        return link, Hold(session, model, dtype, span, sender, max_tokens)

    def promote(self, key: HopKey) -> HopLink:
        """A standby that becomes a hop is none any more."""
        return self._links.pop(key)

    def link(self, key: HopKey) -> HopLink | None:
        return self._links.get(key)

    def keep_here(self, key: HopKey, sender: PeerId, kind: KvFormat) -> None:
        try:
            self._receiver.keep(hop_session(self._name, key), Kept(self._transport.me, sender, kind, any_profile=True))
        except ShoalError as error:
            self._post(CacheFailed(key, key, str(error)))  # replay has to do
            return
        self._here.add(key)

    def send_to(self, key: HopKey, level: KvLevel) -> SendCache:
        """What the hop is told that sends to this hold."""
        session = hop_session(self._name, key)
        if key in self._links:
            at = self._links[key].at
            return SendCache(at.peer, session, at.addresses, level, hands_over=False)
        return SendCache(self._transport.me, session, self._transport.addresses, level, hands_over=False)

    async def send_kept(self, key: HopKey, to: LinkAddress, below: int) -> None:
        """What is kept here, to a hop that waits for it."""
        try:
            stream = await open_attached(
                self._transport, self._gate, messages.CACHE_PROTOCOL, to.peer, to.addresses, to.session
            )
            try:
                held = 0
                for data in self._receiver.keeper.chunks(hop_session(self._name, key), self._transport.me, below):
                    await stream.send(messages.encode(Chunk(data)))
                    held += parse_chunk(data).count
                await stream.send(messages.encode(CacheEnd(held, ())))
                await stream.close()
            finally:
                stream.abort()
        except ShoalError as error:
            self._post(CacheFailed(to.key, to.key, str(error)))

    def source(self, restore: Restore) -> PeerId:
        return restore.sender or self._transport.me

    def end(self, key: HopKey) -> HopLink | None:
        """returns: the link to close"""
        if key in self._here:
            self._here.discard(key)
            self._receiver.keeper.end(hop_session(self._name, key))
        return self._links.pop(key, None)

    def end_all(self) -> list[HopLink]:
        links = [self.end(key) for key in tuple(self.keys())]
        return [link for link in links if link is not None]
