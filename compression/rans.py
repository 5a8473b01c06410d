"""N-lane interleaved rANS with static tables: the normative implementation, in numpy.

Symbol i belongs to lane i % lanes; all lanes share one run of 16-bit words, read in the order in which a decoder
needs them. A lane's state x stays in [2^16, 2^32); a symbol moves at most one word, so the inner loop has no branch.
Integers only: the same symbols give the same bytes on every machine, and `rans_numba` gives the same bytes faster.

Layout of one stream, little endian: `lanes` final states as uint32, then the words.
source: Duda, Asymmetric numeral systems, arXiv:1311.2540; Giesen, Interleaved entropy coders, arXiv:1402.3392

Shape letters: B streams coded side by side, N symbols of each, L lanes, C contexts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .entropy_table import SLOT_BITS, SLOTS, EntropyTable
from .errors import MalformedPayload

LOWEST_STATE = 1 << 16
WORD_BITS = 16
EMIT_SHIFT = 32 - SLOT_BITS
MAXIMUM_LANES = 2048
# What leaves a state as it is: all slots to one symbol, each at its own place. For the lanes that a last step lacks.
IDLE_RANGE = SLOTS << (SLOT_BITS + 1)
IDLE_SLOTS = (np.arange(SLOTS, dtype=np.uint32) << np.uint32(8)) | np.uint32((SLOTS - 1) << 20)
BLOCK_SYMBOLS = 1 << 16

Symbols = npt.NDArray[np.uint8]
Contexts = npt.NDArray[np.uint16]
Numbers = npt.NDArray[np.uint32]


def lanes_for(symbols: int, per_lane: int = 512) -> int:
    """A power of two up to 1024 that gives each lane, which costs two bytes, so many symbols or more."""
    return 1 << max(0, min(10, (symbols // per_lane).bit_length() - 1))


def encode_streams(
    symbols_bn: Symbols, contexts: Contexts, table: EntropyTable, lanes: int, accelerate: bool | None = None
) -> list[bytes]:
    """Code B streams of N symbols each; symbol i of every stream is coded in context contexts[..., i].

    accelerate: None takes numba where it is installed; the bytes do not depend on it
    raises: ValueError for a symbol that has no slot in its context
    """
    streams, count = symbols_bn.shape
    if contexts.shape not in {(count,), (streams, count)} or not 1 <= lanes <= MAXIMUM_LANES:
        raise ValueError(f"{contexts.shape} contexts for {count} symbols on {lanes} lanes")
    if count and (int(contexts.max()) >= table.contexts or int(symbols_bn.max(initial=0)) >= table.alphabet):
        raise ValueError("a context or symbol outside the table")
    if wants_numba(accelerate):
        from . import rans_numba

        return rans_numba.encode_streams(symbols_bn, contexts, table, lanes)
    return _encode(symbols_bn, contexts, table, lanes)


def decode_streams(
    bodies: Sequence[bytes | memoryview],
    contexts: Contexts,
    table: EntropyTable,
    lanes: int,
    accelerate: bool | None = None,
) -> Symbols:
    """The inverse of `encode_streams`: (B, N) uint8. Bytes that are not wholly used up are refused.

    raises: MalformedPayload
    """
    if not 1 <= lanes <= MAXIMUM_LANES:
        raise ValueError(f"{lanes} lanes")
    if contexts.size and int(contexts.max()) >= table.contexts:
        raise ValueError("a context outside the table")
    for body in bodies:
        if len(body) < 4 * lanes or len(body) % 2:
            raise MalformedPayload("an entropy coded stream of a length that cannot be")
        if len(body) > 4 * lanes + 2 * contexts.shape[-1]:
            raise MalformedPayload("an entropy coded stream longer than its symbols allow")
    if wants_numba(accelerate):
        from . import rans_numba

        symbols, intact = rans_numba.decode_streams(bodies, contexts, table, lanes)
    else:
        symbols, intact = _decode(bodies, contexts, table, lanes)
    if not intact:
        raise MalformedPayload("an entropy coded stream that does not end where it began")
    return symbols


def _encode(symbols_bn: Symbols, contexts: Contexts, table: EntropyTable, lanes: int) -> list[bytes]:
    streams, count = symbols_bn.shape
    ranges = table.ranges_cs.ravel()
    states_k = np.full(streams * lanes, LOWEST_STATE, np.uint32)
    # The few lanes that emit a word in a step, last step first: their places and the words.
    emitted = [(np.empty(0, np.int64), np.empty(0, np.uint16))]
    for first, last in reversed(_blocks(streams, count, lanes)):
        entries = symbols_bn[:, first:last] + contexts[..., first:last].astype(np.uint32) * np.uint32(table.alphabet)
        entries_sk = _by_step(ranges.take(entries, mode="clip"), lanes, IDLE_RANGE)
        frequencies_sk = entries_sk >> np.uint32(SLOT_BITS + 1)
        if not frequencies_sk.all():
            raise ValueError("a symbol that has no slot in its context")
        # A frequency of all slots wraps round to the largest integer, which no state exceeds: it emits nothing.
        limits_sk = (frequencies_sk << np.uint32(EMIT_SHIFT)) - np.uint32(1)
        others_sk = np.uint32(SLOTS) - frequencies_sk
        entries_sk &= np.uint32(2 * SLOTS - 1)
        for step in range(len(entries_sk) - 1, -1, -1):
            full = (states_k > limits_sk[step]).nonzero()[0]
            if len(full):
                words = states_k[full]
                emitted.append((full, words.astype(np.uint16)))
                states_k[full] = words >> np.uint32(WORD_BITS)
            quotients_k = states_k // frequencies_sk[step]
            quotients_k *= others_sk[step]
            states_k += quotients_k
            states_k += entries_sk[step]
    place_w, words_w = (np.concatenate(column) for column in zip(*reversed(emitted), strict=True))
    stream_w = (place_w // lanes).astype(np.uint16)
    ends = np.cumsum(np.bincount(stream_w, minlength=streams))
    runs = np.split(words_w[np.argsort(stream_w, kind="stable")].astype("<u2"), ends[:-1])
    states = states_k.astype("<u4").reshape(streams, lanes)
    return [state.tobytes() + run.tobytes() for state, run in zip(states, runs, strict=True)]


def _decode(
    bodies: Sequence[bytes | memoryview], contexts: Contexts, table: EntropyTable, lanes: int
) -> tuple[Symbols, bool]:
    streams, count = len(bodies), contexts.shape[-1]
    states_k = np.concatenate([np.frombuffer(body, "<u4", lanes) for body in bodies]).astype(np.uint32)
    if (states_k < LOWEST_STATE).any():
        return np.empty((0, 0), np.uint8), False
    pieces = [np.frombuffer(body, "<u2", offset=4 * lanes) for body in bodies]
    words = np.concatenate([*pieces, np.zeros(streams * lanes, np.uint16)]).astype(np.uint32)
    ends = np.cumsum([len(piece) for piece in pieces])
    cursors = ends - np.array([len(piece) for piece in pieces])
    ramp = np.arange(streams * lanes)
    slots = np.concatenate([table.slots_cm.ravel(), IDLE_SLOTS])
    symbols_bn = np.empty((streams, count), np.uint8)
    for first, last in _blocks(streams, count, lanes):
        offsets = np.atleast_2d(contexts[..., first:last].astype(np.uint32) << np.uint32(SLOT_BITS))
        offsets_sk = _by_step(offsets, lanes, table.contexts << SLOT_BITS)
        entries_sk = np.empty((len(offsets_sk), streams * lanes), np.uint32)
        for step, entry in enumerate(entries_sk):
            slot = states_k & np.uint32(SLOTS - 1)
            slot.reshape(-1, offsets_sk.shape[1])[...] += offsets_sk[step]
            # Every index is inside by construction; clipping only spares numpy its check.
            slots.take(slot, out=entry, mode="clip")
            states_k >>= np.uint32(SLOT_BITS)
            frequency = entry >> np.uint32(20)
            frequency += np.uint32(1)
            states_k *= frequency
            offset = entry >> np.uint32(8)
            offset &= np.uint32(SLOTS - 1)
            states_k += offset
            short = (states_k < LOWEST_STATE).nonzero()[0]
            if not len(short):
                continue
            if streams == 1:
                places = cursors[0] + ramp[: len(short)]
                cursors += len(short)
            else:
                stream = short // lanes
                taken = np.bincount(stream, minlength=streams)
                places = ramp[: len(short)] + (cursors + taken - np.cumsum(taken))[stream]
                cursors += taken
            # Reads behind a stream's end are of one to be refused.
            states_k[short] = (states_k[short] << np.uint32(WORD_BITS)) | words.take(places, mode="clip")
        by_stream = entries_sk.astype(np.uint8).reshape(-1, streams, lanes).swapaxes(0, 1)
        symbols_bn[:, first:last] = by_stream.reshape(streams, -1)[:, : last - first]
    return symbols_bn, bool((cursors == ends).all() and (states_k == LOWEST_STATE).all())


def _blocks(streams: int, count: int, lanes: int) -> list[tuple[int, int]]:
    """First and last symbol of some whole steps at a time; only the last block may end within a step."""
    size = max(1, BLOCK_SYMBOLS // (streams * lanes)) * lanes
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def _by_step(values_bn: Numbers, lanes: int, idle: int) -> Numbers:
    """(steps, B * L) from (B, N): what all lanes need in one step side by side; `idle` fills up the last step."""
    streams, count = values_bn.shape
    steps = -(-count // lanes)
    if count % lanes:
        padded = np.full((streams, steps * lanes), idle, np.uint32)
        padded[:, :count] = values_bn
        values_bn = padded
    return np.ascontiguousarray(values_bn.reshape(streams, steps, lanes).swapaxes(0, 1)).reshape(steps, -1)
