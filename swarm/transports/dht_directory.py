"""The swarm's directory in hivemind's Kademlia DHT: a DHTNode in our own loop, on the P2P that the transport has.

The DHT is a hint, never an authority: whatever comes back is checked again, and the newest valid record of each
peer stays in a book until its time is over, so a peer that answers with nothing, or with rubbish, hides nobody.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from shoal.swarm.directory import RecordBook
from shoal.swarm.errors import MalformedMessage, Refused, SwarmUnreachable, Unavailable
from shoal.swarm.identifiers import ModelId
from shoal.swarm.identity import Identity
from shoal.swarm.prefixes.announcement import ANNOUNCEMENT_TTL_S, Announcement, read_announcement, sign_announcement
from shoal.swarm.prefixes.prefix_chain import Address
from shoal.swarm.records import CLOCK_SLACK_S, RECORD_TTL_S, NodeRecord, RecordReader, sign_record

from . import dht_keys
from .dht_bootstrap import Answered, ask_bootstrap_peers, check_clock
from .dht_node import RPC_TIMEOUT_S, create_node, within
from .record_validator import REVOCATION_TTL_S, SwarmRecordValidator

LOOKUP_TIMEOUT_S = 6.0
STORE_TIMEOUT_S = 8.0
WITHDRAW_TIMEOUT_S = 3.0
REJOIN_PERIOD_S = 10.0
TOUCH_PERIOD_S = 30.0  # how often the bootstrap peers that are not in our table are looked for
FRESH_S = 1.0  # two lookups within this time are one
BEAM = 8  # peers asked per key on reading; the dht_node.REPLICAS nearest hold it
STOP_TIMEOUT_S = 2.0


class DhtDirectory:
    """A `directory.Directory`. `start` and `stop` belong to one asyncio loop; the P2P stays its owner's.

    book: all valid records seen lately. reachable: whether a bootstrap peer could dial us, None when nobody was asked.
    """

    def __init__(
        self,
        node: Any,
        book: RecordBook,
        identity: Identity,
        reader: RecordReader,
        bootstrap: tuple[str, ...],
        clock: Callable[[], float],
    ) -> None:
        self.book = book
        self.reachable: bool | None = None
        self._node = node
        self._identity = identity
        self._reader = reader
        self._swarm = reader.swarm.id
        self._bootstrap = bootstrap
        self._clock = clock
        self._ours: NodeRecord | None = None  # the last announced
        self._looked_up_at: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._rejoined_at = -math.inf
        self._touched_at = clock()
        self._touching: asyncio.Task[None] | None = None
        self._published = (0, -math.inf)  # version of the revocation list that stands in the DHT, and until when

    @classmethod
    async def start(
        cls,
        p2p: Any,
        identity: Identity,
        reader: RecordReader,
        bootstrap: Sequence[str] = (),
        *,
        listen: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> "DhtDirectory":
        """p2p: a running hivemind P2P, whose PeerID is the identity's
        bootstrap: multiaddrs with /p2p/; none means that we are the first
        listen: False for a client that others cannot dial; it stores nothing

        raises: SwarmUnreachable when no bootstrap peer answers; UsageError when this machine's clock is wrong
        """
        book = RecordBook(reader)
        node = await create_node(p2p, identity.peer_id, SwarmRecordValidator(reader, clock, book.merge), listen)
        others = tuple(a for a in bootstrap if not a.endswith(f"/p2p/{identity.peer_id}"))
        directory = cls(node, book, identity, reader, others, clock)
        try:
            if others:
                await directory._join(others)
        except BaseException:
            await directory.stop()
            raise
        return directory

    async def _join(self, addresses: Iterable[str]) -> None:
        answers = await ask_bootstrap_peers(self._node, addresses, self._clock, RPC_TIMEOUT_S)
        if not answers:
            raise SwarmUnreachable(
                f"none of the {len(set(addresses))} known addresses of the swarm answered; is one of its nodes running?"
            )
        check_clock(answers)
        self.reachable = any(answer.could_dial_us for answer in answers)
        await self._fill_routing_table(answers)

    async def _fill_routing_table(self, answers: Iterable[Answered]) -> None:
        for answer in answers:
            await self._node.protocol.update_routing_table(answer.node_id, answer.peer_id, responded=True)
        await within(RPC_TIMEOUT_S, self._node.find_nearest_nodes([self._node.node_id]))

    async def stop(self) -> None:
        if self._touching is not None:
            self._touching.cancel()
        self._node.is_alive = False
        with contextlib.suppress(Exception):  # the handlers are gone with the daemon anyway
            await within(STOP_TIMEOUT_S, self._node.shutdown())  # it hangs when our own p2pd has died

    async def announce(self, record: NodeRecord) -> None:
        now = self._clock()
        expires_at = now + RECORD_TTL_S
        if self._ours is not None and expires_at <= self._ours.expires_at < expires_at + CLOCK_SLACK_S / 2:
            expires_at = self._ours.expires_at + 1e-3
        record = msgspec.structs.replace(record, expires_at=expires_at)
        data = sign_record(self._identity, record)
        self._ours = record
        self.book.merge(data, now)
        await self._rejoin_when_alone()
        self._touch_bootstrap_peers()
        if not await self._store_record(record, data, STORE_TIMEOUT_S):
            raise Unavailable("no peer of the swarm would store this node's record; trying again")
        await self._publish_revocations()

    async def withdraw(self) -> None:
        if self._ours is None:
            return
        last = self._ours
        gone = msgspec.structs.replace(last, withdrawn=True, rtt_ms={}, expires_at=last.expires_at + 1e-3)
        data = sign_record(self._identity, gone)
        self._ours = None
        self.book.merge(data, self._clock())
        await self._store_record(gone, data, WITHDRAW_TIMEOUT_S)

    async def nodes(self) -> list[NodeRecord]:
        keys = [*dht_keys.node_keys(self._swarm), dht_keys.revocation_key(self._swarm)]
        await self._look_up("nodes", keys)
        return self.book.live(self._clock())

    async def holders(self, model: ModelId) -> list[NodeRecord]:
        await self._look_up(model, dht_keys.model_keys(self._swarm, model))
        return self.book.holders(model, self._clock())

    async def trainers(self, run: str) -> list[NodeRecord]:
        """The live nodes that train this run, by its key, sorted by PeerID."""
        await self._look_up(run, dht_keys.run_keys(self._swarm, run))
        return [record for record in self.book.live(self._clock()) if run in record.runs]

    async def announce_prefix(self, chunks: Sequence[Address], certificate: bytes) -> None:
        """Make findable that we give these chunks of one prefix. raises: Unavailable"""
        expires_at = self._clock() + ANNOUNCEMENT_TTL_S
        data = sign_announcement(self._identity, self._swarm, certificate, list(chunks), expires_at)
        key = dht_keys.prefix_key(self._swarm, chunks[0])
        if not await self._store([key], data, self._identity.peer_id, expires_at, STORE_TIMEOUT_S):
            raise Unavailable("no peer of the swarm would store the announcement of a prefix")

    async def prefix_holders(self, root: Address) -> list[Announcement]:
        """Valid announcements of the prefix that begins with this chunk; [] when nobody answers."""
        key = dht_keys.prefix_key(self._swarm, root)
        futures = await self._node.get_many(
            [key], sufficient_expiration_time=math.nan, beam_size=BEAM, return_futures=True
        )
        _, late = await asyncio.wait(futures.values(), timeout=LOOKUP_TIMEOUT_S)
        for future in late:
            future.cancel()
        future = futures[key]
        if future.cancelled() or not future.done() or future.exception() or not future.result():
            return []
        found, now = [], self._clock()
        for entry in future.result().value.values():
            with contextlib.suppress(MalformedMessage, Refused):
                said = read_announcement(entry.value, self._reader, now)
                if said.root == root and said.expires_at > now:
                    found.append(said)
        return found

    async def _store_record(self, record: NodeRecord, data: bytes, timeout_s: float) -> bool:
        keys = [dht_keys.node_key(self._swarm, record.peer)]
        keys += [dht_keys.model_key(self._swarm, model, record.peer) for model in record.models]
        keys += [dht_keys.run_key(self._swarm, run, record.peer) for run in record.runs]
        return await self._store(keys, data, record.peer, record.expires_at, timeout_s)

    async def _store(
        self, keys: list[bytes], value: bytes, subkey: str | int, expires_at: float, timeout_s: float
    ) -> bool:
        """Whether the first key was stored somewhere."""
        stored = await within(
            timeout_s,
            self._node.store_many(
                keys,
                [value] * len(keys),
                expires_at,
                subkeys=[subkey] * len(keys),
                exclude_self=self._node.protocol.client_mode,
            ),
        )
        return bool(stored and stored[keys[0], subkey])

    async def _look_up(self, what: str, keys: list[bytes]) -> None:
        async with self._locks.setdefault(what, asyncio.Lock()):
            if self._clock() - self._looked_up_at.get(what, -math.inf) < FRESH_S:
                return
            await self._rejoin_when_alone()
            futures = await self._node.get_many(
                keys,
                # NaN: no answer suffices, so a peer cannot end the search by claiming an expiry of infinity
                sufficient_expiration_time=math.nan,
                beam_size=BEAM,
                return_futures=True,
            )
            _, late = await asyncio.wait(futures.values(), timeout=LOOKUP_TIMEOUT_S)
            for future in late:
                future.cancel()
            now = self._clock()
            revocation_key = dht_keys.revocation_key(self._swarm)
            for key, future in futures.items():
                if future.cancelled() or not future.done() or future.exception() or not future.result():
                    continue
                entries = future.result().value
                if key == revocation_key:
                    self._learn_revocations(entries)
                else:
                    self.book.merge_all((entry.value for entry in entries.values()), now)
            self.book.prune(now)
            self._looked_up_at[what] = now
            if len(self._looked_up_at) > 64:
                self._looked_up_at.clear()
                self._locks.clear()

    def _learn_revocations(self, entries: dict[Any, Any]) -> None:
        for entry in entries.values():
            self._reader.revocations.merge(entry.value)
        mine = entries.get(self._reader.revocations.version)
        if mine is not None:
            self._published = (self._reader.revocations.version, mine.expiration_time)

    async def _publish_revocations(self) -> None:
        """Any member keeps the owner's newest list alive; it is stored again when half of its time is over."""
        revocations, now = self._reader.revocations, self._clock()
        version, until = self._published
        if not revocations.version or (version == revocations.version and until > now + REVOCATION_TTL_S / 2):
            return
        expires_at = now + REVOCATION_TTL_S
        key = dht_keys.revocation_key(self._swarm)
        if await self._store([key], revocations.encoded, revocations.version, expires_at, STORE_TIMEOUT_S):
            self._published = (revocations.version, expires_at)

    async def _rejoin_when_alone(self) -> None:
        """When every peer was lost, ask the bootstrap peers and all that are in the book again, once in a while."""
        now = self._clock()
        if len(self._node.protocol.routing_table.uid_to_peer_id) or now - self._rejoined_at < REJOIN_PERIOD_S:
            return
        self._rejoined_at = now
        known = [
            f"{address}/p2p/{record.peer}"
            for record in self.book.live(now)
            if record.peer != self._identity.peer_id
            for address in record.addresses
        ]
        addresses = dict.fromkeys([*self._bootstrap, *known[:64]])
        if addresses:
            await self._fill_routing_table(await ask_bootstrap_peers(self._node, addresses, self._clock, RPC_TIMEOUT_S))

    def _touch_bootstrap_peers(self) -> None:
        """In the background: a bootstrap peer that was restarted alone comes back into the swarm's table by this."""
        now = self._clock()
        if now - self._touched_at < TOUCH_PERIOD_S or (self._touching is not None and not self._touching.done()):
            return
        self._touched_at = now
        present = {peer.to_base58() for peer in self._node.protocol.routing_table.uid_to_peer_id.values()}
        lost = [a for a in self._bootstrap if a.rpartition("/p2p/")[2] not in present]
        if lost:
            self._touching = asyncio.create_task(self._touch(lost))

    async def _touch(self, addresses: list[str]) -> None:
        await self._fill_routing_table(await ask_bootstrap_peers(self._node, addresses, self._clock, RPC_TIMEOUT_S))
