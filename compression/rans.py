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

Symbols = npt.NDArray[np.uint8]
Contexts = npt.NDArray[np.uint16]


def lanes_for(symbols: int, per_lane: int = 1024) -> int:
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
    offsets = contexts.astype(np.uint32) * np.uint32(table.alphabet)
    states_bl = np.full((streams, lanes), LOWEST_STATE, np.uint32)
    # The few lanes that emit a word in a step, last step first: their streams and the words.
    emitted = [(np.empty(0, np.int64), np.empty(0, np.uint16))]
    least_bl = np.full((streams, lanes), SLOTS, np.uint32)
    with np.errstate(divide="ignore"):
        for first in range((count - 1) // lanes * lanes, -1, -lanes):
            last = min(count, first + lanes)
            state = np.ascontiguousarray(states_bl[:, : last - first])
            entry = ranges.take(symbols_bn[:, first:last] + offsets[..., first:last], mode="clip")
            frequency = entry >> np.uint32(SLOT_BITS + 1)
            rarest = least_bl[:, : last - first]
            np.minimum(rarest, frequency, out=rarest)
            full = np.flatnonzero(state >> np.uint32(EMIT_SHIFT) >= frequency)
            if len(full):
                words = state.ravel()[full]
                emitted.append((full // (last - first), words.astype(np.uint16)))
                state.ravel()[full] = words >> np.uint32(WORD_BITS)
            quotient = state // frequency
            quotient *= np.uint32(SLOTS) - frequency
            state += quotient
            entry &= np.uint32(2 * SLOTS - 1)
            state += entry
            if last - first < lanes:
                states_bl[:, : last - first] = state
    if not least_bl.all():
        raise ValueError("a symbol that has no slot in its context")
    stream_k, words_k = (np.concatenate(column) for column in zip(*reversed(emitted), strict=True))
    order = np.argsort(stream_k.astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(stream_k, minlength=streams))
    states, runs = states_bl.astype("<u4"), np.split(words_k[order].astype("<u2"), ends[:-1])
    return [state.tobytes() + run.tobytes() for state, run in zip(states, runs, strict=True)]


def _decode(
    bodies: Sequence[bytes | memoryview], contexts: Contexts, table: EntropyTable, lanes: int
) -> tuple[Symbols, bool]:
    streams, count = len(bodies), contexts.shape[-1]
    head = 4 * lanes
    states_bl = np.stack([np.frombuffer(body, "<u4", lanes) for body in bodies]).astype(np.uint32)
    if (states_bl < LOWEST_STATE).any():
        return np.empty((0, 0), np.uint8), False
    pieces = [np.frombuffer(body, "<u2", offset=head) for body in bodies]
    words = np.concatenate([*pieces, np.zeros(1, np.uint16)]).astype(np.uint32)
    ends = np.cumsum([len(piece) for piece in pieces])
    cursors = ends - np.array([len(piece) for piece in pieces])
    ramp = np.arange(streams * lanes)
    slots = table.slots_cm.ravel()
    offsets = contexts.astype(np.uint32) << np.uint32(SLOT_BITS)
    symbols_bn = np.empty((streams, count), np.uint8)
    for first in range(0, count, lanes):
        last = min(count, first + lanes)
        state = np.ascontiguousarray(states_bl[:, : last - first])
        # Every index is inside by construction; clipping only spares numpy its check.
        entry = slots.take((state & np.uint32(SLOTS - 1)) + offsets[..., first:last], mode="clip")
        symbols_bn[:, first:last] = entry  # the low byte
        state >>= np.uint32(SLOT_BITS)
        state *= (entry >> np.uint32(20)) + np.uint32(1)
        entry >>= np.uint32(8)
        entry &= np.uint32(SLOTS - 1)
        state += entry
        short = np.flatnonzero(state < LOWEST_STATE)
        if len(short):
            stream = short // (last - first)
            taken = np.bincount(stream, minlength=streams)
            places = ramp[: len(short)] + (cursors + taken - np.cumsum(taken))[stream]
            # Reads behind a stream's end are of one to be refused.
            refills = words.take(places, mode="clip")
            state.ravel()[short] = (state.ravel()[short] << np.uint32(WORD_BITS)) | refills
            cursors += taken
        if last - first < lanes:
            states_bl[:, : last - first] = state
    intact = bool((cursors == ends).all() and (states_bl == LOWEST_STATE).all())
    return symbols_bn, intact
