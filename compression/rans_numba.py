"""The loops of `rans`, compiled: the same bytes from the same symbols."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .acceleration import compiled
from .entropy_table import EntropyTable

U = np.uint64  # an index type that the compiler need not check for being negative
u32 = np.uint32


@compiled
def _encode_one(
    symbols_n: npt.NDArray[np.uint8],
    contexts_n: npt.NDArray[np.uint16],
    reciprocals: npt.NDArray[np.uint64],
    ranges: npt.NDArray[np.uint32],
    alphabet: int,
    states_l: npt.NDArray[np.uint32],
    words: npt.NDArray[np.uint16],
) -> int:
    """ranges: start in bits 0..12, frequency above. Returns where the words begin in `words`, or -1: no slot.

    The first and the last inner loop become vector code; only the middle one, which moves words, is serial.
    """
    count = U(symbols_n.shape[0])
    lanes = U(states_l.shape[0])
    entries_l = np.empty(states_l.shape[0], np.uint32)
    ranges_l = np.empty(states_l.shape[0], np.uint32)
    stride = u32(alphabet)
    missing = u32(0)
    cursor = U(words.shape[0] - 1)
    step = (count + lanes - U(1)) // lanes
    while step > U(0):
        step -= U(1)
        first = step * lanes
        width = min(lanes, count - first)
        for index in range(width):
            lane = U(index)
            entry = u32(contexts_n[first + lane]) * stride + u32(symbols_n[first + lane])
            entries_l[lane] = entry
            ranges_l[lane] = ranges[entry]
            missing |= u32(ranges[entry] < u32(8192))
        lane = width
        while lane > U(0):
            lane -= U(1)
            emit = (states_l[lane] >> u32(20)) >= (ranges_l[lane] >> u32(13))
            words[cursor] = np.uint16(states_l[lane])
            cursor -= U(emit)
            states_l[lane] = (states_l[lane] >> u32(16)) if emit else states_l[lane]
        for index in range(width):
            lane = U(index)
            state = U(states_l[lane])
            quotient = (state * reciprocals[U(entries_l[lane])]) >> U(44)
            frequency = U(ranges_l[lane] >> u32(13))
            states_l[lane] = u32(state + quotient * (U(4096) - frequency) + U(ranges_l[lane] & u32(8191)))
    if missing != u32(0):
        return -1
    return int(np.int64(cursor)) + 1


@compiled
def _decode_one(
    words: npt.NDArray[np.uint16],
    contexts_n: npt.NDArray[np.uint16],
    slots: npt.NDArray[np.uint32],
    states_l: npt.NDArray[np.uint32],
    symbols_n: npt.NDArray[np.uint8],
) -> bool:
    """words: padded by as many as there are lanes, so that one step past the end still reads inside."""
    count = U(symbols_n.shape[0])
    lanes = U(states_l.shape[0])
    last = U(words.shape[0]) - lanes
    cursor = U(0)
    first = U(0)
    while first < count:
        width = min(lanes, count - first)
        for index in range(width):
            lane = U(index)
            state = states_l[lane]
            entry = slots[(u32(contexts_n[first + lane]) << u32(12)) | (state & u32(4095))]
            symbols_n[first + lane] = np.uint8(entry)
            states_l[lane] = ((entry >> u32(20)) + u32(1)) * (state >> u32(12)) + ((entry >> u32(8)) & u32(4095))
        for index in range(width):
            lane = U(index)
            short = states_l[lane] < u32(65536)
            refilled = (states_l[lane] << u32(16)) | u32(words[cursor])
            states_l[lane] = refilled if short else states_l[lane]
            cursor += U(short)
        if cursor > last:
            return False
        first += lanes
    intact = bool(cursor == last)
    for index in range(lanes):
        intact = intact and states_l[U(index)] == u32(65536)
    return intact


def encode_streams(
    symbols_bn: npt.NDArray[np.uint8], contexts: npt.NDArray[np.uint16], table: EntropyTable, lanes: int
) -> list[bytes]:
    ranges = table.starts_cs.ravel() | (table.frequencies_cs.ravel() << np.uint32(13))
    reciprocals = table.reciprocals_cs.ravel()
    words = np.empty(symbols_bn.shape[1] + 1, np.uint16)
    bodies = []
    for stream, symbols_n in enumerate(symbols_bn):
        contexts_n = contexts if contexts.ndim == 1 else contexts[stream]
        states_l = np.full(lanes, 65536, np.uint32)
        first = _encode_one(symbols_n, contexts_n, reciprocals, ranges, table.alphabet, states_l, words)
        if first < 0:
            raise ValueError("a symbol that has no slot in its context")
        bodies.append(states_l.astype("<u4", copy=False).tobytes() + words[first:].astype("<u2", copy=False).tobytes())
    return bodies


def decode_streams(
    bodies: Sequence[bytes | memoryview], contexts: npt.NDArray[np.uint16], table: EntropyTable, lanes: int
) -> tuple[npt.NDArray[np.uint8], bool]:
    symbols_bn = np.empty((len(bodies), contexts.shape[-1]), np.uint8)
    slots = table.slots_cm.ravel()
    intact = True
    for stream, body in enumerate(bodies):
        states_l = np.frombuffer(body, "<u4", lanes).astype(np.uint32)
        words = np.zeros((len(body) - 4 * lanes) // 2 + lanes, np.uint16)
        words[:-lanes] = np.frombuffer(body, "<u2", offset=4 * lanes)
        contexts_n = contexts if contexts.ndim == 1 else contexts[stream]
        # A state below the lowest cannot come from an encoder, and a later refill could hide it.
        intact = intact and bool((states_l >= 65536).all())
        intact = intact and _decode_one(words, contexts_n, slots, states_l, symbols_bn[stream])
    return symbols_bn, intact
