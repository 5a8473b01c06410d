import time
from datetime import UTC, datetime

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.training.limits import BUSY_SHARE, IDLE_AFTER_S, IdleJudge, LimitSettings, open_now, opens_at
from shoal.node.training.limits_rate import BURST_S, Throttle, TokenBucket
from shoal.node.training.limits_transport import ThrottledTransport
from shoal.node.training.limits_units import bits_per_second, memory_bytes, minutes_of_day
from shoal.node.training.limits_watch import LimitWatch, OthersLoad, refuse_memory, too_much_used
from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transport import CallHandler, Stream


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    return virtual_time


def at(clock: str) -> datetime:
    return datetime.strptime(f"2026-03-01 {clock}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10 Mbit/s", 1e7), ("500 kB/s", 4e6), ("1.5Gbit/s", 1.5e9), ("64 kbps", 64e3), ("800 bit/s", 800)],
)
def test_rates_are_read_as_people_write_them(text: str, rate: float) -> None:
    assert bits_per_second(text) == rate


def test_sizes_and_hours_are_read_as_people_write_them() -> None:
    assert memory_bytes("8GB", 1) == 8 * 10**9
    assert memory_bytes("512 MiB", 1) == 512 << 20
    assert memory_bytes("25%", 1000) == 250
    assert minutes_of_day("22:00-07:30") == (1320, 450)
    for text in ("25:00-26:00", "10:60-11:00", "10:00-10:00", "10-11"):
        with pytest.raises(UsageError):
            minutes_of_day(text)
    with pytest.raises(UsageError, match="150%"):
        memory_bytes("150%", 1000)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 2)), min_size=1, max_size=60))
def test_no_more_passes_than_the_rate_allows(sends: list[tuple[int, float]]) -> None:
    bucket, now, passed = TokenBucket(1000, 0.0), 0.0, []
    for size, pause in sends:
        now += pause
        passed.append((now + bucket.take(size, now), size))
    for end, _ in passed:
        assert sum(size for when, size in passed if when <= end) <= 1000 * (end + BURST_S) + 1e-6


def test_an_idle_bucket_does_not_save_up_for_ever() -> None:
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(100, 1000.0) == 0.0
    assert bucket.take(1000, 1000.0) == pytest.approx(0.6)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="zero"):
        TokenBucket(0, 0.0)


class Loose:
    """A transport that answers at once."""

    def __init__(self) -> None:
        self.me, self.addresses = PeerId("me"), ("/ip4/127.0.0.1/tcp/1",)
        self.handlers: dict[str, CallHandler] = {}

    async def connect(self, *_: object) -> None: ...
    async def disconnect(self, *_: object) -> None: ...
    async def died(self) -> None: ...
    async def serve(self, *_: object) -> None: ...

    async def call(self, peer: PeerId, method: str, payload: bytes, timeout_s: float = 5.0) -> bytes:
        return payload[:10]

    async def answer(self, method: str, handler: CallHandler) -> None:
        self.handlers[method] = handler

    async def open(self, peer: PeerId, protocol: str, timeout_s: float = 10.0) -> Stream:
        return Pipe(peer)


class Pipe:
    def __init__(self, peer: PeerId) -> None:
        self.peer = peer

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes | None:
        return b"four"

    async def close(self) -> None: ...
    def abort(self) -> None: ...


@pytest.mark.anyio
async def test_streams_calls_and_answers_share_one_rate() -> None:
    loose = Loose()
    transport = ThrottledTransport(loose, Throttle(8000.0))  # 1000 bytes a second
    began = anyio.current_time()

    async def asked(_: PeerId, body: bytes) -> bytes:
        return body * 5

    await transport.answer("m", asked)
    stream = await transport.open(PeerId("you"), "p")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, bytes(3000))
        tasks.start_soon(transport.call, PeerId("you"), "m", bytes(4000))
        tasks.start_soon(loose.handlers["m"], PeerId("you"), bytes(1000))
    assert anyio.current_time() - began == pytest.approx((3000 + 4000 + 5000) / 1000 - BURST_S)
    assert await stream.receive() == b"four"
    assert (transport.traffic.sent_bytes, transport.traffic.received_bytes) == (12000, 1014)


@pytest.mark.anyio
async def test_a_vote_does_not_wait_behind_a_payload() -> None:
    throttle = Throttle(8000.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(throttle.pass_through, 60_000)
        await anyio.sleep(1)
        began = anyio.current_time()
        await throttle.pass_through(200)
        assert anyio.current_time() == began


@pytest.mark.anyio
async def test_without_a_limit_nothing_waits() -> None:
    began = anyio.current_time()
    throttle = Throttle.of("")
    await throttle.pass_through(10**12)
    assert anyio.current_time() == began


@pytest.mark.parametrize(
    ("clock", "is_open", "opens"),
    [("23:00", True, "23:00"), ("06:59", True, "06:59"), ("07:00", False, "12:00"), ("14:00", False, "22:00")],
)
def test_hours_may_pass_midnight(clock: str, is_open: bool, opens: str) -> None:
    hours = ("22:00-07:00", "12:00-14:00")
    assert open_now(hours, at(clock)) is is_open
    assert f"{opens_at(hours, at(clock)):%H:%M}" == opens


def test_the_machine_counts_as_idle_after_a_quiet_while_only() -> None:
    judge = IdleJudge()
    judge.observe(0.0, 0.0)
    assert not judge.idle(IDLE_AFTER_S - 1)
    assert judge.idle(IDLE_AFTER_S)
    judge.observe(BUSY_SHARE + 0.1, IDLE_AFTER_S)
    assert not judge.idle(IDLE_AFTER_S)
    judge.observe(0.0, IDLE_AFTER_S + 1)
    assert judge.idle(2 * IDLE_AFTER_S + 1)


@pytest.mark.anyio
async def test_training_waits_for_pause_hours_and_idleness_and_says_why() -> None:
    settings = LimitSettings(hours=("22:00-07:00",), idle_only=True)
    clock, load = [at("21:00")], [0.9]
    watch = LimitWatch(settings, load=lambda: load[0], clock=lambda: clock[0])
    watch.paused = True
    told: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.watch)
        tasks.start_soon(watch.allowed, told.append)
        await anyio.sleep(5)
        watch.paused = False
        await anyio.sleep(5)
        clock[0] = at("22:01")
        await anyio.sleep(5)
        load[0] = 0.05
        await anyio.sleep(2 * IDLE_AFTER_S)
        tasks.cancel_scope.cancel()
    assert [line.split(";")[0] for line in told] == [
        "paused",
        "outside of the hours 22:00-07:00",
        "somebody uses this machine",
        "",
    ]


def test_the_load_of_others_leaves_out_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(0.0, 100.0, 50.0), (10.0, 112.0, 58.0), (20.0, 120.0, 66.0)])  # wall, all processors, ours
    monkeypatch.setattr(OthersLoad, "_times", lambda _: next(times))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    load = OthersLoad()
    assert load.share() == pytest.approx(0.2)
    assert load.share() == 0


def test_the_load_of_others_is_measured_on_this_machine() -> None:
    load = OthersLoad()
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    assert 0 <= load.share() <= 1.2


def test_memory_limits_are_told_with_both_figures() -> None:
    with pytest.raises(OutOfMemory, match=r"training x needs about 2.00 GB, limits.memory gives 1.00 GB"):
        refuse_memory(LimitSettings(memory="1GB"), 2 * 10**9, "training x")
    refuse_memory(LimitSettings(memory="3GB"), 2 * 10**9, "training x")
    assert too_much_used(LimitSettings(memory="1MB"))
    assert not too_much_used(LimitSettings())
