"""Any bytes are a message or raise the one error, for every type; every type comes back as it was."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.compression import activations
from shoal.compression.errors import MalformedPayload
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import ModelId, PeerId, SessionId, SwarmId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions import messages
from shoal.swarm.units import Span

PEER, SESSION = PeerId("12D3KooWexample"), SessionId("00" * 12)
EXAMPLES: list[messages.AnyMessage] = [
    messages.Hello(1, SwarmId("s"), b"certificate"),
    messages.Welcome(1, b""),
    messages.Open(
        SESSION,
        ModelId("m"),
        "float32",
        Span(0, 5),
        100,
        PEER,
        None,
        None,
        ("/ip4/127.0.0.1/tcp/1",),
        Sampling(seed=3),
        (),
    ),
    messages.Opened(SESSION),
    messages.Attach(SESSION),
    messages.Attach(SESSION, early=True),
    messages.Kept(192),
    messages.Prepare(PEER, SESSION, ("/ip4/127.0.0.1/tcp/1",)),
    messages.Feed(3, 2, (1, 2), b"", True, False, (messages.Timing(0.5, 1.5),)),
    messages.Token(5, 17, -0.25, ((17, -0.25), (3, -2.0)), ()),
    messages.Output(5, 1, b"hidden", True, ()),
    messages.Failed("no_room", "KV cache full", None),
    messages.Adopt(PEER),
    messages.Rewire(PEER, SESSION, ()),
    messages.Probe(7),
    messages.Progress(7, 99),
    messages.Computed(96),
    messages.Tick(bytes(16)),
    messages.Pay(bytes(85)),
    messages.PaidFeed(5, 1, (7,), b"", True, False, (), bytes(16)),
    messages.Slice(0, (3, 4, 5), None),
    messages.HiddenSlice(64, 2, 0, bytes(32), bytes(16)),
    messages.Hold(SESSION, ModelId("m"), "float32", Span(0, 5), PEER, 1000),
    messages.SendCache(PEER, SESSION, ("/ip4/127.0.0.1/tcp/1",), "lossless", hands_over=True),
    messages.CacheLost(SESSION, "no room"),
    messages.Chunk(b"chunk"),
    messages.CacheEnd(200, (1, 2, 3)),
    messages.Restored(192),
    messages.Leaving(60.0),
    messages.NoSuccessor("nobody holds them"),
    messages.Stay(),
    messages.Handed(200),
    messages.Staged(((0, 4), (6, 7)), True),
    messages.Skippable(((0, 4),), False),
    messages.Keep(3, (b"l" * 16,)),
    messages.Reused(64, 128),
    messages.Streamed(192, True, "NaN"),
    messages.Ahead(128, False),
    messages.NoPrefill("it is gone"),
]


def test_every_type_has_an_example() -> None:
    assert {type(m) for m in EXAMPLES} == set(messages.AnyMessage.__args__)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was(message: messages.AnyMessage) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_raise_the_one_error(data: bytes) -> None:
    try:
        assert isinstance(messages.decode(data), messages.Message)
    except MalformedMessage:
        return


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.integers(0, 10_000))
def test_a_damaged_message_is_a_message_or_raises_the_one_error(
    message: messages.AnyMessage, at: int, flip: int, cut: int
) -> None:
    data = bytearray(messages.encode(message))
    data[at % len(data)] ^= flip
    for damaged in (bytes(data), bytes(data[: cut % len(data)])):
        try:
            assert isinstance(messages.decode(damaged), messages.Message)
        except MalformedMessage:
            continue


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", messages.AnyMessage.__args__, ids=lambda kind: kind.__name__)
@given(st.lists(nested, max_size=12))
def test_the_right_tag_with_wrong_fields_raises_the_one_error(
    kind: type[messages.AnyMessage], fields: list[object]
) -> None:
    data = msgspec.msgpack.encode([kind.__struct_config__.tag, *fields])
    try:
        assert type(messages.decode(data)) is kind
    except MalformedMessage:
        return


@pytest.mark.parametrize("tick", [b"", bytes(16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_slice_of_hidden_states_says_the_same_as_its_feed(dtype: str, tick: bytes) -> None:
    hidden = activations.pack(dtype, 3, 8, bytes(activations.body_bytes(dtype, 3, 8)))
    feed = messages.Feed(64, 3, (), hidden, False, False, ())
    assert messages.unpacked(messages.slice_of(feed, tick)) == (feed, tick)


@given(st.integers(-1, 9), st.integers(-1, 9), st.binary(max_size=64))
def test_a_slice_of_any_shape_is_a_feed_or_malformed(code: int, count: int, body: bytes) -> None:
    try:
        feed, _ = messages.unpacked(messages.HiddenSlice(0, count, code, body, None))
    except MalformedPayload:
        return
    assert activations.tail(feed.hidden, count, 0) == feed.hidden
