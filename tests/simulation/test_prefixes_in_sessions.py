"""Prefixes in whole sessions, in virtual time: whatever is reused, the tokens are those of an undisturbed run."""

import dataclasses
from collections.abc import Callable

import anyio
import msgspec
import pytest
from simulation.prefix_world import PROMPT, PrefixWorld, prefix_world
from simulation.session_world import MODEL, MODEL_ID, WIDE_AREA, OpenGate

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.kv.kv_chunks import pack_chunk, parse_chunk
from shoal.swarm.members.handshake import greet, receive_greeting
from shoal.swarm.prefixes.giving_limits import MOST_OF_A_PEER
from shoal.swarm.prefixes.prefix_chain import LINK_BYTES, Address, chain
from shoal.swarm.prefixes.prefixes import UNREAD_S, chunk_wire
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.transport import Stream
from shoal.swarm.units import Span

NEW = 12
CHUNKS = (len(PROMPT) - 1) // CHUNK_TOKENS
EXPECTED = MODEL.expected_tokens(PROMPT, NEW)
TWO_CHAINS = (("front", "embed+0:3"), ("other front", "embed+0:3"), ("back", "3:6+head"), ("other back", "3:6+head"))
FIRST_CHAIN, SECOND_CHAIN = ("other front", "other back"), ("front", "back")


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


def computed(swarm: PrefixWorld, name: str) -> int:
    return swarm.volunteers[name].compute.computed_positions


@pytest.mark.anyio
async def test_a_prompt_that_was_prefilled_here_before_is_not_computed_again() -> None:
    async with prefix_world(("one", "all")) as swarm:
        tokens, _ = await swarm.ask(NEW)
        await swarm.kept("one", CHUNKS)
        before = computed(swarm, "one")
        again, route = await swarm.ask(NEW)
        assert tokens == again == EXPECTED
        assert route.hops[0].stored == CHUNKS * CHUNK_TOKENS
        assert computed(swarm, "one") - before == len(PROMPT) - CHUNKS * CHUNK_TOKENS + NEW - 1


@pytest.mark.anyio
async def test_a_prefix_is_fetched_from_the_peer_that_has_it() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched > CHUNKS * CHUNK_TOKENS / 2
        assert computed(swarm, "other") == len(PROMPT) + NEW - 1 - route.hops[0].fetched


@pytest.mark.anyio
async def test_every_hop_of_a_chain_fetches_its_own_layers() -> None:
    async with prefix_world(*TWO_CHAINS) as swarm:
        await swarm.ask(NEW, without=FIRST_CHAIN)
        await swarm.kept("front", CHUNKS)
        await swarm.kept("back", CHUNKS)
        tokens, route = await swarm.ask(NEW, without=SECOND_CHAIN)
        assert tokens == EXPECTED
        front, back = route.hops
        assert front.fetched == back.fetched > 0
        assert computed(swarm, "other front") == computed(swarm, "other back") < len(PROMPT)


@pytest.mark.anyio
async def test_the_driver_may_be_the_node_of_the_first_hop() -> None:
    async with prefix_world(("front", "embed+0:3"), ("back", "3:6+head")) as swarm:
        swarm.start_driver(within="front")
        await swarm.ask(NEW)
        await swarm.kept("front", CHUNKS)
        await swarm.kept("back", CHUNKS)
        tokens, route = await swarm.ask(NEW)
        assert tokens == EXPECTED
        assert [hop.stored for hop in route.hops] == [CHUNKS * CHUNK_TOKENS] * 2
        assert not route.failovers


@pytest.mark.anyio
async def test_a_hop_that_finds_nothing_makes_the_hops_before_it_compute() -> None:
    async with prefix_world(*TWO_CHAINS) as swarm:
        await swarm.ask(NEW, without=FIRST_CHAIN)
        await swarm.kept("front", CHUNKS)
        for said in swarm.said.values():
            said.pop(PeerId("back"), None)
        tokens, route = await swarm.ask(NEW, without=SECOND_CHAIN)
        assert tokens == EXPECTED
        assert [hop.fetched for hop in route.hops] == [0, 0]


@pytest.mark.anyio
async def test_a_private_prompt_is_neither_kept_nor_announced() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, share=False)
        assert not swarm.said
        assert not any(prefixes.store.memory.chunks for prefixes in swarm.prefixes.values())


@pytest.mark.anyio
async def test_a_session_resumes_by_its_name_and_no_other_session_finds_it() -> None:
    async with prefix_world(("one", "all")) as swarm:
        long = 2 * CHUNK_TOKENS
        tokens, _ = await swarm.ask(long, share=False, session="my own name")
        chunks = (len(PROMPT) + long - 1) // CHUNK_TOKENS
        await swarm.kept("one", chunks)
        history = PROMPT + tuple(tokens)
        more, route = await swarm.ask(NEW, history, share=False, session="my own name")
        assert route.hops[0].stored == chunks * CHUNK_TOKENS
        others, other_route = await swarm.ask(NEW, history, share=False, session="your own name")
        assert other_route.hops[0].stored == 0
        assert more == others
        assert not swarm.said


@pytest.mark.anyio
async def test_a_donor_that_dies_costs_no_token() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        swarm.network.kill(PeerId("one"))
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched == 0


@pytest.mark.anyio
async def test_a_hop_that_is_lost_after_the_prefix_was_skipped_is_replaced() -> None:
    async with prefix_world(("front", "embed+0:3"), ("back", "3:6+head"), ("spare", "3:6+head")) as swarm:
        await swarm.ask(NEW, without=["spare"])
        await swarm.kept("front", CHUNKS)
        await swarm.kept("back", CHUNKS)
        swarm.volunteers["back"].compute.fail("break_down", after=3)
        tokens, route = await swarm.ask(NEW)
        assert tokens == EXPECTED
        assert route.failovers


@pytest.mark.anyio
async def test_what_was_fetched_is_not_passed_on() -> None:
    async with prefix_world(("one", "all"), ("other", "all"), ("third", "all")) as swarm:
        await swarm.ask(NEW, without=["other", "third"])
        await swarm.kept("one", CHUNKS)
        await swarm.ask(NEW, without=["one", "third"])
        swarm.network.kill(PeerId("one"))
        _, route = await swarm.ask(NEW, without=["one", "other"])
        assert route.hops[0].fetched == 0


def other_values(data: bytes) -> bytes:
    chunk = parse_chunk(data)
    return pack_chunk(msgspec.structs.replace(chunk, payload=bytes(255 - byte for byte in chunk.payload)))


def of_format(**changes: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        chunk = parse_chunk(data)
        return pack_chunk(msgspec.structs.replace(chunk, format=msgspec.structs.replace(chunk.format, **changes)))

    return change


def moved(data: bytes) -> bytes:
    chunk = parse_chunk(data)
    return pack_chunk(msgspec.structs.replace(chunk, start=chunk.start + CHUNK_TOKENS))


BAD_CHUNKS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-9],
    "of another model": of_format(model=ModelId("o" * 64)),
    "of other layers": of_format(layers=(0, 2)),
    "of another dtype": of_format(dtype="bfloat16"),
    "of another profile": of_format(profile=b"o" * 32),
    "of another place": moved,
    "too short inside": lambda data: pack_chunk(
        msgspec.structs.replace(parse_chunk(data), payload=parse_chunk(data).payload[:-8])
    ),
    "no chunk": lambda _: b"rubbish",
}


def make_donor_lie(swarm: PrefixWorld, name: str, change: Callable[[bytes], bytes], after: int = 1) -> None:
    """From the (after + 1)-th chunk on."""
    prefixes, honest, given = swarm.prefixes[name], swarm.prefixes[name]._given, []  # noqa: SLF001

    async def lie(address: Address, level: str) -> bytes | None:
        data = await honest(address, level)
        given.append(address)
        return change(data) if data is not None and len(given) > after else data

    prefixes._given = lie  # type: ignore[method-assign]  # noqa: SLF001


@pytest.mark.anyio
@pytest.mark.parametrize("what", BAD_CHUNKS)
async def test_a_bad_chunk_is_found_its_donor_dropped_and_no_token_changed(what: str) -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        make_donor_lie(swarm, "one", BAD_CHUNKS[what])
        tokens, _ = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        taker = swarm.prefixes["other"]
        assert taker.is_banned(PeerId("one"))
        assert taker.counts.false == 1
        assert all(label.maker == PeerId("other") for label in taker.store.labels().values())


@pytest.mark.anyio
async def test_an_answer_that_comes_twice_is_a_fault_of_the_donor() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        prefixes, honest = swarm.prefixes["one"], swarm.prefixes["one"]._given  # noqa: SLF001
        first: list[tuple[Address, bytes | None]] = []

        async def twice(address: Address, level: str) -> bytes | None:
            data = await honest(address, level)
            first.append((address, data))
            return first[0][1]  # always the first chunk, whatever was asked for

        prefixes._given = twice  # type: ignore[method-assign]  # noqa: SLF001
        tokens, _ = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert swarm.prefixes["other"].is_banned(PeerId("one"))


@pytest.mark.anyio
@pytest.mark.parametrize("layout", [(("one", "all"), ("other", "all")), TWO_CHAINS])
async def test_a_chunk_of_right_form_and_false_content_is_found_by_an_audit(
    layout: tuple[tuple[str, str], ...],
) -> None:
    """Every prompt is audited here: one chunk is computed although it was fetched."""
    first, second = (["other"], ["one"]) if len(layout) == 2 else (list(FIRST_CHAIN), list(SECOND_CHAIN))
    liar, taker = ("one", "other") if len(layout) == 2 else ("back", "other back")
    async with prefix_world(*layout, audit_share=1.0) as swarm:
        await swarm.ask(NEW, without=first)
        for name in set(swarm.prefixes) - set(first):
            await swarm.kept(name, CHUNKS)
        make_donor_lie(swarm, liar, other_values, after=0)
        for _ in range(12):
            tokens, _ = await swarm.ask(NEW, without=second)
            if swarm.prefixes[taker].is_banned(PeerId(liar)):
                break
            for name in second:
                assert name in swarm.prefixes
            await swarm.prefixes[taker].store.drop(lambda _, label: True)
        assert tokens == EXPECTED
        assert swarm.prefixes[taker].counts.false == 1
        assert swarm.prefixes[taker].counts.audited >= 1


@pytest.mark.anyio
async def test_honest_chunks_pass_their_audit() -> None:
    async with prefix_world(("one", "all"), ("other", "all"), audit_share=1.0) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        audited = 0
        for _ in range(6):
            tokens, _ = await swarm.ask(NEW, without=["one"], exact=False)
            assert tokens == EXPECTED
            audited = swarm.prefixes["other"].counts.audited
            await swarm.prefixes["other"].store.drop(lambda _, label: True)
        assert audited >= 1
        assert not swarm.prefixes["other"].counts.false


@pytest.mark.anyio
async def test_what_a_node_alone_has_made_is_not_computed_again_for_an_audit() -> None:
    async with prefix_world(("one", "all"), audit_share=1.0) as swarm:
        await swarm.ask(NEW)
        await swarm.kept("one", CHUNKS)
        for _ in range(4):
            tokens, route = await swarm.ask(NEW)
            assert tokens == EXPECTED
            assert route.hops[0].stored == CHUNKS * 64


@pytest.mark.anyio
async def test_an_audit_that_cannot_be_made_costs_the_session_nothing() -> None:
    """As while the layers of a hop are exchanged."""
    asked = 0

    async def refuse(*_: object) -> float:
        nonlocal asked
        asked += 1
        raise Refused("these layers are not held here")

    async with prefix_world(("one", "all"), ("other", "all"), audit_share=1.0) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        swarm.volunteers["other"].compute.kv_distance = refuse  # type: ignore[method-assign]
        for _ in range(6):
            tokens, route = await swarm.ask(NEW, without=["one"], exact=False)
            assert tokens == EXPECTED
            assert not route.failovers
            await swarm.prefixes["other"].store.drop(lambda _, label: True)
        assert asked
        assert not swarm.prefixes["other"].counts.false


@pytest.mark.anyio
async def test_chunks_are_not_taken_from_whom_the_node_does_not_trust() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        swarm.prefixes["other"]._trusts = lambda peer: peer != PeerId("one")  # noqa: SLF001
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched == 0


@pytest.mark.anyio
async def test_a_prefix_can_be_fetched_before_anybody_asks_for_it() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        taker, compute = swarm.prefixes["other"], swarm.volunteers["other"].compute
        links = chain(MODEL_ID, "float32", "", PROMPT)[:CHUNKS]
        assert await taker.fetch_ahead(compute.kv_format(Span(0, 8)), links, "lossless") == (CHUNKS, CHUNKS)
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched == CHUNKS * CHUNK_TOKENS


@pytest.mark.anyio
async def test_a_prompt_is_either_shared_or_a_sessions_own() -> None:
    async with prefix_world(("one", "all")) as swarm:
        with pytest.raises(UsageError, match="share_prefix or a session"):
            await swarm.ask(NEW, share=True, session="my own name")
        with pytest.raises(UsageError, match="8 to 128"):
            await swarm.ask(NEW, share=False, session="short")


@pytest.mark.anyio
async def test_an_empty_chunk_is_a_fault_of_the_donor_and_not_the_end_of_the_session() -> None:
    """Its size would be divided by, where it is the first that comes."""
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        make_donor_lie(swarm, "one", lambda _: b"", after=0)
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert not route.failovers
        assert swarm.prefixes["other"].is_banned(PeerId("one"))


@pytest.mark.anyio
async def test_a_donor_that_denies_what_nobody_asked_for_is_left() -> None:
    """Each answer keeps the wait for the next one alive, so it could go on for ever."""
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        denied = 0

        async def deny(stream: Stream) -> None:
            nonlocal denied
            await receive_greeting(stream, OpenGate())
            while await stream.receive() is not None:
                for _ in range(100):
                    denied += 1
                    await stream.send(chunk_wire.encode(chunk_wire.Missing(bytes(LINK_BYTES))))

        await swarm.transports[PeerId("one")].serve(chunk_wire.PROTOCOL, deny)
        tokens, _ = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert swarm.prefixes["other"].is_banned(PeerId("one"))
        assert denied < 1000


@pytest.mark.anyio
async def test_a_level_that_several_ask_for_at_once_is_made_room_for_once() -> None:
    """Bytes that are counted and not there would in the end leave no room for anything that is made."""
    async with prefix_world(("one", "all")) as swarm:
        await swarm.ask(NEW)
        await swarm.kept("one", CHUNKS)
        prefixes = swarm.prefixes["one"]
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(prefixes._given, next(iter(prefixes.store.labels())), "small")  # noqa: SLF001
        assert prefixes._made_bytes == sum(map(len, prefixes._made.values()))  # noqa: SLF001


@pytest.mark.anyio
@pytest.mark.parametrize("session", ["my own name", ""])
@pytest.mark.parametrize(("lost", "spare"), [("front", ("spare", "embed+0:3")), ("back", ("spare", "3:6+head"))])
async def test_who_takes_a_lost_hops_place_hears_of_the_prefix_and_goes_on(
    lost: str, spare: tuple[str, str], session: str
) -> None:
    """It was not told the links, so what the driver says of them is nothing to it."""
    long = 2 * CHUNK_TOKENS
    async with prefix_world(("front", "embed+0:3"), ("back", "3:6+head"), spare) as swarm:
        swarm.volunteers[lost].compute.fail("break_down", after=20)
        tokens, route = await swarm.ask(long, share=not session, session=session)
        assert tokens == MODEL.expected_tokens(PROMPT, long)
        assert len(route.failovers) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("session", ["my own name", ""])
async def test_hops_that_keep_nothing_serve_requests_that_allow_it(session: str) -> None:
    long = 2 * CHUNK_TOKENS
    async with prefix_world(("front", "embed+0:3"), ("back", "3:6+head")) as swarm:
        for volunteer in swarm.volunteers.values():
            await HopServer(swarm.transports[volunteer.peer], OpenGate(), volunteer).start()
        tokens, route = await swarm.ask(long, share=not session, session=session)
        assert tokens == MODEL.expected_tokens(PROMPT, long)
        assert not route.failovers


@pytest.mark.anyio
async def test_what_waits_to_be_taken_in_has_a_bound_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is decoded when it is its turn; until then a donor could send as much as a frame holds."""
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        size = swarm.prefixes["one"].store.memory.used_bytes // CHUNKS
        monkeypatch.setattr("shoal.swarm.prefixes.hop_prefix.STAGED_BYTES", 3 * size + size // 2)
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert 0 < route.hops[0].fetched <= 3 * CHUNK_TOKENS
        assert swarm.prefixes["other"].staged_bytes == 0
        assert not swarm.prefixes["other"].is_banned(PeerId("one"))


@pytest.mark.anyio
@pytest.mark.parametrize("used_up", ["streams", "bytes", "rate"])
async def test_a_donor_that_has_given_enough_says_so_and_the_taker_computes(
    used_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        limits = swarm.prefixes["one"].limits
        match used_up:
            case "streams":
                for _ in range(MOST_OF_A_PEER):
                    limits.enter(PeerId("other"))
            case "bytes":
                limits.spend(PeerId("other"), 1 << 40)
            case _:
                limits.byte_s = 0.0
        monkeypatch.setattr(
            "shoal.swarm.prefixes.hop_prefix.log.info", lambda event, **facts: said.append(facts["reason"])
        )
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched == 0
        assert not swarm.prefixes["other"].is_banned(PeerId("one"))
        words = {"streams": "no more to one peer", "bytes": "ask in", "rate": "gives no chunks away"}
        assert [reason for reason in said if words[used_up] in reason]


@pytest.mark.anyio
async def test_who_asks_for_chunks_and_reads_none_does_not_keep_a_donors_streams() -> None:
    narrow = dataclasses.replace(WIDE_AREA, window_bytes=4096)
    async with prefix_world(("one", "all"), conditions=narrow) as swarm:
        await swarm.ask(NEW)
        await swarm.kept("one", CHUNKS)
        ((root, chunks),) = [(root, said[PeerId("one")]) for root, said in swarm.said.items()]
        idle = swarm.network.join(PeerId("idle"))
        for _ in range(MOST_OF_A_PEER):
            stream = await idle.open(PeerId("one"), chunk_wire.PROTOCOL)
            await greet(stream, OpenGate())
            for place in (*chunks, root):
                await stream.send(chunk_wire.encode(chunk_wire.Want(place, "lossless")))
        await anyio.sleep(UNREAD_S / 2)
        limits = swarm.prefixes["one"].limits
        with pytest.raises(Refused):
            limits.enter(PeerId("idle"))
        await anyio.sleep(UNREAD_S)
        limits.enter(PeerId("idle"))
