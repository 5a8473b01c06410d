"""Prompts that a fast peer computes for a slow chain, in virtual time: whatever happens, the text does not change."""

from collections.abc import Callable, Sequence
from dataclasses import replace as with_fields

import anyio
import pytest
from msgspec.structs import replace
from simulation.prefill_world import CHUNK_BYTES, EXPECTED, FAST_S, NEAR, NEW, PROMPT, prefill_world
from simulation.session_world import MODEL, MODEL_ID, OpenGate

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.errors import Refused, ShoalError, UsageError
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.kv.cache_streams import open_attached
from shoal.swarm.kv.kv_chunks import KvChunk, pack_chunk, parse_chunk
from shoal.swarm.members.handshake import greet, next_message
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions import messages
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.hop_link import HopLink, LinkAddress
from shoal.swarm.sessions.session_events import Event, HopOpened
from shoal.swarm.units import Span

CHAIN = (("front", "embed+0:3"), ("back", "3:6+head"))
ASKED = len(PROMPT) - 1


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize(
    "chain",
    [
        (("one", "all"),),
        CHAIN,
        (("front", "embed+0:2"), ("middle", "2:4"), ("back", "4:6+head")),
        (("ends", "embed"), ("middle", "0:6"), ("last", "head")),
    ],
)
async def test_a_fast_peer_computes_the_prompt_and_the_chain_goes_on_from_there(
    chain: tuple[tuple[str, str], ...],
) -> None:
    async with prefill_world(*chain) as swarm:
        began = anyio.current_time()
        alone, route = await swarm.ask(prefill="never")
        alone_s = route.first_token_s
        assert not route.prefills
        for volunteer in swarm.volunteers.values():
            volunteer.compute.computed_positions = 0
        tokens, route = await swarm.ask()
        assert tokens == alone == EXPECTED
        (prefill,) = route.prefills
        assert (prefill.positions, prefill.asked, prefill.trouble) == (ASKED, ASKED, "")
        assert prefill.names == ("fast",)
        assert swarm.computed("fast") == ASKED
        for name, _ in chain:
            assert swarm.computed(name) == NEW, name
        assert route.first_token_s < 0.35 * alone_s
        assert anyio.current_time() > began
        await swarm.settled()
        await swarm.streams_ended()


@pytest.mark.anyio
@pytest.mark.parametrize("exactness", ["exact", "fast"])
async def test_the_client_chooses_whether_the_cache_may_lose_something(exactness: str) -> None:
    levels: set[str] = set()

    class Noting(Passing):
        async def export_kv(
            self, session: SessionId, start: int, stop: int, level: KvLevel = "lossless", span: Span | None = None
        ) -> list[bytes]:
            levels.add(level)
            return await super().export_kv(session, start, stop, level, span)

    async with prefill_world(*CHAIN, wrapped=Noting) as swarm:
        tokens, route = await swarm.ask(exactness=exactness)  # type: ignore[arg-type]
        assert tokens == EXPECTED
        assert route.prefills[0].positions == ASKED
        assert levels == {"lossless" if exactness == "exact" else "default"}


@pytest.mark.anyio
async def test_several_peers_may_compute_the_prompt_each_its_layers() -> None:
    chain = (("front", "embed+0:2"), ("middle", "2:4"), ("back", "4:6+head"))
    async with prefill_world(*chain, prefillers=(("fast 1", "embed+0:2"), ("fast 2", "2:6"))) as swarm:
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert route.prefills[0].positions == ASKED
        assert route.prefills[0].layers == ("embed+0:2", "2:6")
        assert [swarm.computed(name) for name, _ in chain] == [NEW] * 3


@pytest.mark.anyio
async def test_a_hop_of_the_chain_may_compute_its_own_part_of_the_prompt_for_a_faster_one_behind_it() -> None:
    async with prefill_world(*CHAIN, prefillers=(("front", "embed+0:3"), ("fast", "3:6"))) as swarm:
        swarm.volunteers["front"].compute.position_s = FAST_S
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert route.prefills[0].positions == ASKED
        assert swarm.computed("back") == NEW
        assert swarm.computed("front") == ASKED + NEW


@pytest.mark.anyio
@pytest.mark.parametrize("after_s", [0.0, 0.08, 0.14, 0.2, 0.26, 0.3, 0.36, 0.42, 0.5, 0.58, 0.64])
@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_a_prefiller_that_is_lost_at_any_point_costs_no_token(after_s: float, how: str) -> None:
    async with prefill_world(*CHAIN) as swarm:
        _, route = await swarm.ask(prefill="never")
        alone_s = route.first_token_s

        async def lose() -> None:
            await anyio.sleep(after_s)
            (swarm.network.kill if how == "dies" else swarm.network.hang)(PeerId("fast"))

        swarm.tasks.start_soon(lose)
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert not route.failovers
        assert route.first_token_s < alone_s + 1.3  # what was expected of it, twice, and a little
        await swarm.settled_but("fast")


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["refuse_open", "refuse_work", "refuse_export", "break_down", "never_answer"])
@pytest.mark.parametrize("after", [0, 3])
async def test_a_prefiller_that_refuses_costs_no_token(fault: str, after: int) -> None:
    async with prefill_world(*CHAIN) as swarm:
        swarm.volunteers["fast"].compute.fail(fault, after)  # type: ignore[arg-type]
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert not route.failovers
        (prefill,) = route.prefills
        assert prefill.positions < ASKED
        if fault != "never_answer":
            assert prefill.trouble
        await swarm.settled()


@pytest.mark.anyio
async def test_a_hop_that_takes_no_caches_in_computes() -> None:
    async with prefill_world(*CHAIN) as swarm:
        swarm.volunteers["front"].compute.fail("refuse_import")
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert route.prefills[0].positions == 0


@pytest.mark.anyio
async def test_a_hop_behind_that_takes_no_caches_in_makes_the_chain_begin_anew() -> None:
    async with prefill_world(*CHAIN) as swarm:
        swarm.volunteers["back"].compute.fail("refuse_import")
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert all(prefill.positions == 0 for prefill in route.prefills)


@pytest.mark.anyio
@pytest.mark.parametrize("byte_s", [CHUNK_BYTES / 4, CHUNK_BYTES, CHUNK_BYTES * 4])
@pytest.mark.parametrize("expected", [False, True])
async def test_a_slow_link_costs_little(byte_s: float, expected: bool) -> None:
    """A chunk takes 4, 1 or .25 s to come; the chain takes .4 s to compute one."""
    conditions = with_fields(NEAR, bandwidth_byte_s=byte_s)
    async with prefill_world(*CHAIN, expected=expected) as swarm:
        _, route = await swarm.ask(prefill="never")
        alone_s = route.first_token_s
        for name in ("front", "back"):
            swarm.network.link(PeerId("fast"), PeerId(name)).conditions = conditions
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert route.first_token_s < alone_s + 2.5


class Passing:
    """Around the computing of who prefills; subclasses change what it gives away."""

    def __init__(self, inner: Compute) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def export_kv(
        self, session: SessionId, start: int, stop: int, level: KvLevel = "lossless", span: Span | None = None
    ) -> list[bytes]:
        return [self.changed(data) for data in await self.inner.export_kv(session, start, stop, level, span)]

    def changed(self, data: bytes) -> bytes:
        return data


def lie(at: int, change: Callable[[KvChunk], KvChunk | bytes]) -> Callable[[Compute], Compute]:
    """From position `at` on."""

    class Lying(Passing):
        def changed(self, data: bytes) -> bytes:
            chunk = parse_chunk(data)
            if chunk.start < at:
                return data
            made = change(chunk)
            return made if isinstance(made, bytes) else pack_chunk(made)

    return Lying  # type: ignore[return-value]


LIES: dict[str, Callable[[KvChunk], KvChunk | bytes]] = {
    "no chunk": lambda _: b"no chunk",
    "another model": lambda chunk: replace(chunk, format=replace(chunk.format, model="0" * 64)),
    "other layers": lambda chunk: replace(chunk, format=replace(chunk.format, layers=(0, 1))),
    "another dtype": lambda chunk: replace(chunk, format=replace(chunk.format, dtype="float16")),
    "lossy": lambda chunk: replace(chunk, format=replace(chunk.format, profile=b"p" * 32)),
    "from another place": lambda chunk: replace(chunk, start=chunk.start + 64),
    "shorter": lambda chunk: replace(chunk, count=10, payload=chunk.payload[: len(chunk.payload) * 10 // 64]),
    "damaged": lambda chunk: replace(chunk, payload=chunk.payload[:-1]),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("at", [0, 5 * CHUNK_TOKENS])
async def test_a_wrong_chunk_makes_the_chain_compute_the_prompt_itself(name: str, at: int) -> None:
    async with prefill_world(*CHAIN, wrapped=lie(at, LIES[name])) as swarm:
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        (prefill,) = route.prefills
        assert "false" in prefill.trouble
        assert PeerId("fast") in swarm.blamed
        assert sum(swarm.computed(name) for name, _ in CHAIN) >= 2 * ASKED
        await swarm.settled()


@pytest.mark.anyio
async def test_numbers_that_are_false_are_found_where_a_chunk_is_computed_all_the_same() -> None:
    flip = lie(0, lambda chunk: replace(chunk, payload=bytes(255 - byte for byte in chunk.payload)))
    async with prefill_world(*CHAIN, wrapped=flip, audit_share=1.0) as swarm:
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert "from what was computed" in route.prefills[0].trouble
        assert PeerId("fast") in swarm.blamed
    async with prefill_world(*CHAIN, audit_share=1.0) as swarm:
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert not route.prefills[0].trouble
        assert swarm.computed("front") == swarm.computed("back") == NEW + CHUNK_TOKENS


@pytest.mark.anyio
async def test_only_the_peer_that_was_named_may_send() -> None:
    async with prefill_world(*CHAIN) as swarm:
        stranger = swarm.network.join(PeerId("stranger"))
        refused: list[bool] = []

        async def intrude() -> None:
            await anyio.sleep(0.2)
            (session,) = swarm.volunteers["front"].compute.sessions
            to = PeerId("front"), (), session
            stream = await open_attached(stranger, OpenGate(), messages.CACHE_PROTOCOL, *to)
            try:
                await stream.send(messages.encode(messages.Chunk(b"what a stranger says")))
                refused.append(await stream.receive() is None)
            except ShoalError:
                refused.append(True)

        swarm.tasks.start_soon(intrude)
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert refused == [True]
        assert route.prefills[0].positions == ASKED


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.5])
async def test_a_decoding_hop_that_is_lost_meanwhile_is_replaced(place: int, after_s: float) -> None:
    spares = (("front 2", "embed+0:3"), ("back 2", "3:6+head"))
    async with prefill_world(*CHAIN, *spares) as swarm:

        async def lose() -> None:
            await anyio.sleep(after_s)
            busy = [peer for peer in swarm.busy() if peer != "fast"]
            swarm.network.kill(busy[place])

        swarm.tasks.start_soon(lose)
        tokens, _ = await swarm.ask()
        assert tokens == EXPECTED
        await swarm.settled()


@pytest.mark.anyio
async def test_a_client_that_leaves_meanwhile_leaves_nothing_behind() -> None:
    async with prefill_world(*CHAIN) as swarm:
        assert swarm.driver is not None
        async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, NEW)):
            await anyio.sleep(0.3)
            assert PeerId("fast") in swarm.busy()
        await swarm.settled()
        await swarm.streams_ended()


@pytest.mark.anyio
async def test_a_prefiller_that_is_about_to_leave_is_waited_for_and_a_later_one_is_not_asked() -> None:
    async with prefill_world(*CHAIN) as swarm:

        async def drain() -> None:
            await anyio.sleep(0.3)
            drained = await swarm.servers["fast"].drain(30.0, lambda _: None)
            assert drained.over

        swarm.tasks.start_soon(drain)
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert route.prefills[0].positions == ASKED
        again, route = await swarm.ask()
        assert again == EXPECTED
        assert "about to leave" in route.prefills[0].trouble


@pytest.mark.anyio
async def test_short_prompts_and_clients_that_do_not_want_it_are_left_alone() -> None:
    async with prefill_world(*CHAIN) as swarm:
        short = PROMPT[:CHUNK_TOKENS]
        assert (await swarm.ask(short))[0] == MODEL.expected_tokens(short, NEW)
        await swarm.ask(prefill="never")
        assert swarm.computed("fast") == 0
        with pytest.raises(UsageError, match="prefills goes with"):
            await swarm.ask(prefill="fast", local_layers=1)


@pytest.mark.anyio
async def test_a_prefiller_that_has_computed_all_may_take_minutes_to_send_it() -> None:
    """The chain is so slow that it pays; hops give a driver up that is silent for a minute."""
    async with prefill_world(*CHAIN, expected=False) as swarm:
        for name, _ in CHAIN:
            swarm.volunteers[name].compute.position_s = 0.1  # 19 s for a chunk
            link = swarm.network.link(PeerId("fast"), PeerId(name))
            link.conditions = with_fields(NEAR, bandwidth_byte_s=CHUNK_BYTES / 2 / 10)
        tokens, route = await swarm.ask(count=1)
        assert tokens == EXPECTED[:1]
        assert not route.failovers
        assert route.prefills[0].positions > ASKED / 2
        assert not route.prefills[0].trouble


@pytest.mark.anyio
async def test_how_long_a_prompt_is_said_to_be_costs_nothing_before_there_is_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def counted(chunk: KvChunk) -> bytes:
        made.append(chunk.start)
        return pack_chunk(chunk)

    monkeypatch.setattr("shoal.swarm.prefixes.hop_prefill.pack_chunk", counted)
    async with prefill_world() as swarm:
        client = swarm.network.join(PeerId("liar"))
        stream = await client.open(PeerId("fast"), messages.CONTROL_PROTOCOL)
        await greet(stream, OpenGate())
        wish = messages.Prefill(PeerId("somebody"), 1 << 17, exact=True)
        request = messages.Open(
            SessionId("ab" * 12), MODEL_ID, "float32", Span(0, 1), 1 << 40, client.me, None, None, (), Sampling(), ()
        )
        await stream.send(messages.encode(replace(request, prefill=wish)))
        answers = [await next_message(stream), await next_message(stream)]
        assert isinstance(answers[-1], messages.Failed)
        assert made == []


@pytest.mark.anyio
async def test_a_comparison_that_cannot_be_made_costs_the_session_nothing() -> None:
    """As while the layers of a hop are exchanged."""

    async def refuse(*_: object) -> float:
        raise Refused("these layers are not held here")

    async with prefill_world(*CHAIN, audit_share=1.0) as swarm:
        for name, _ in CHAIN:
            swarm.volunteers[name].compute.kv_distance = refuse  # type: ignore[assignment]
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert not route.failovers
        assert not route.prefills[0].trouble


@pytest.mark.anyio
async def test_a_first_hop_that_is_reached_last_hears_of_what_the_others_have() -> None:
    """And nothing before it has been asked: that would end its stream."""
    async with prefill_world(("ends", "embed+0:3"), ("middle", "3:6"), ("last", "head")) as swarm:
        assert swarm.driver is not None
        transport = swarm.driver._transport  # noqa: SLF001
        connect = transport.connect

        async def late(peer: PeerId, addresses: Sequence[str], timeout_s: float = 10.0) -> None:
            if peer == PeerId("ends"):
                await anyio.sleep(2.0)
            await connect(peer, addresses, timeout_s)

        transport.connect = late  # type: ignore[method-assign]
        tokens, route = await swarm.ask()
        assert tokens == EXPECTED
        assert not route.failovers
        assert route.prefills[0].positions == ASKED
        assert swarm.computed("ends") == NEW


@pytest.mark.anyio
async def test_a_hop_is_told_nothing_before_it_is_asked() -> None:
    async with prefill_world(*CHAIN) as swarm:
        events: list[Event] = []
        at = LinkAddress(1, PeerId("front"), "front", Span(0, 4), SessionId("s"), ())
        link = HopLink(
            at,
            swarm.network.join(PeerId("another")),
            OpenGate(),
            events.append,
            lambda *_: None,
            lambda _: 0,
        )
        request = messages.Open(
            at.session, MODEL_ID, "float32", at.span, 100, PeerId("another"), None, None, (), Sampling(), ()
        )

        async def pay_slowly() -> bytes:
            await anyio.sleep(1.0)
            return b""

        swarm.tasks.start_soon(link.run, request, pay_slowly)
        await anyio.sleep(0.5)
        await link.tell(messages.Ahead(0, over=False))
        await anyio.sleep(1.0)
        assert events == [HopOpened(1)]
        await link.close()
