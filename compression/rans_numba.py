"""The loops of `rans`, compiled: the same bytes from the same symbols.

A step is cut into runs of RUN lanes, which a compiler turns into vector code: gather, then arithmetic, then the only
serial part, which moves one word and adds one flag a lane. Streams are decoded side by side, one run of each in turn:
each has a chain of loads and stores to wait for, and the others' work fills the wait. What is left over (lanes that
are not whole runs, the last step of a stream) goes symbol by symbol.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .acceleration import compiled
from .entropy_table import EntropyTable

U = np.uint64  # an index type that the compiler need not check for being negative
u32 = np.uint32
RUN = 32
STREAMS_AT_ONCE = 4


@compiled
def _encode_one(
    symbols_n: npt.NDArray[np.uint8],
    contexts_n: npt.NDArray[np.uint16],
    ranges: npt.NDArray[np.uint32],
    alphabet: int,
    states_l: npt.NDArray[np.uint32],
    words: npt.NDArray[np.uint16],
) -> int:
    """ranges: start in bits 0..12, frequency above. Returns where the words begin in `words`, or -1: no slot.

    Quotients are taken in float64, which holds them exactly: a quotient below 2^32 by a divisor below 2^13 is further
    from the next whole number than the rounding of 53 bits reaches.
    """
    lanes = U(states_l.shape[0])
    ranges_l = np.empty(RUN, np.uint32)
    low_l = np.empty(RUN, np.uint16)
    emits_l = np.empty(RUN, np.uint8)
    stride = u32(alphabet)
    missing = u32(0)
    cursor = U(words.shape[0] - 1)
    place = U(symbols_n.shape[0])
    while place > U(0) and (place % U(RUN) != U(0) or lanes % U(RUN) != U(0)):
        place -= U(1)
        lane = place % lanes
        entry = ranges[u32(contexts_n[place]) * stride + u32(symbols_n[place])]
        frequency = max(entry >> u32(13), u32(1))
        missing |= u32(entry < u32(8192))
        state = states_l[lane]
        if state >> u32(20) >= frequency:
            words[cursor] = np.uint16(state)
            cursor -= U(1)
            state >>= u32(16)
        states_l[lane] = state + state // frequency * (u32(4096) - frequency) + (entry & u32(8191))
    while place > U(0):
        place -= U(RUN)
        first = place % lanes
        for index in range(RUN):
            at = place + U(index)
            ranges_l[U(index)] = ranges[u32(contexts_n[at]) * stride + u32(symbols_n[at])]
        for index in range(RUN):
            lane = U(index)
            entry = ranges_l[lane]
            frequency = entry >> u32(13)
            missing |= u32(entry < u32(8192))
            state = states_l[first + lane]
            emit = state >> u32(20) >= frequency
            low_l[lane] = np.uint16(state)
            emits_l[lane] = np.uint8(emit)
            state = (state >> u32(16)) if emit else state
            quotient = u32(np.float64(state) / np.float64(frequency))
            states_l[first + lane] = state + quotient * (u32(4096) - frequency) + (entry & u32(8191))
        for index in range(RUN):
            lane = U(RUN - 1 - index)
            words[cursor] = low_l[lane]
            cursor -= U(emits_l[lane])
    if missing != u32(0):
        return -1
    return int(np.int64(cursor)) + 1


@compiled
def _decode_together(
    words: npt.NDArray[np.uint16],
    cursors_b: npt.NDArray[np.uint64],
    ends_b: npt.NDArray[np.uint64],
    contexts_n: npt.NDArray[np.uint16],
    slots: npt.NDArray[np.uint32],
    lane_count: int,
    states: npt.NDArray[np.uint32],
    symbols_bn: npt.NDArray[np.uint8],
) -> bool:
    """words: every stream's followed by RUN more, so that one run past an end still reads inside.

    states: (B * L,)
    """
    streams = symbols_bn.shape[0]
    count = U(symbols_bn.shape[1])
    lanes = U(lane_count)
    whole = count // U(RUN) * U(RUN) if lanes % U(RUN) == U(0) else U(0)
    entries = np.empty(streams * RUN, np.uint32)
    shorts = np.empty(streams * RUN, np.uint8)
    refills = np.empty(streams * RUN, np.uint16)
    place = U(0)
    first = U(0)
    while place < whole:
        for stream in range(streams):
            run = U(stream) * U(RUN)
            lane = U(stream) * lanes + first
            for index in range(RUN):
                slot = (u32(contexts_n[place + U(index)]) << u32(12)) | (states[lane + U(index)] & u32(4095))
                entries[run + U(index)] = slots[slot]
        for stream in range(streams):
            run = U(stream) * U(RUN)
            lane = U(stream) * lanes + first
            symbols_n = symbols_bn[U(stream)]
            for index in range(RUN):
                symbols_n[place + U(index)] = np.uint8(entries[run + U(index)])
            for index in range(RUN):
                entry = entries[run + U(index)]
                state = states[lane + U(index)] >> u32(12)
                state = ((entry >> u32(20)) + u32(1)) * state + ((entry >> u32(8)) & u32(4095))
                states[lane + U(index)] = state
                shorts[run + U(index)] = np.uint8(state < u32(65536))
        for stream in range(streams):
            run = U(stream) * U(RUN)
            cursor = cursors_b[U(stream)]
            for index in range(RUN):
                refills[run + U(index)] = words[cursor]
                cursor += U(shorts[run + U(index)])
            if cursor > ends_b[U(stream)]:
                return False
            cursors_b[U(stream)] = cursor
        for stream in range(streams):
            run = U(stream) * U(RUN)
            lane = U(stream) * lanes + first
            for index in range(RUN):
                # In one expression: with the refill named before, the compiler makes slower code of it.
                at = lane + U(index)
                state = states[at]
                states[at] = ((state << u32(16)) | u32(refills[run + U(index)])) if state < u32(65536) else state
        place += U(RUN)
        first += U(RUN)
        first = U(0) if first == lanes else first
    for stream in range(streams):
        cursor = cursors_b[U(stream)]
        place = whole
        while place < count:
            lane = U(stream) * lanes + place % lanes
            state = states[lane]
            entry = slots[(u32(contexts_n[place]) << u32(12)) | (state & u32(4095))]
            symbols_bn[U(stream), place] = np.uint8(entry)
            state = ((entry >> u32(20)) + u32(1)) * (state >> u32(12)) + ((entry >> u32(8)) & u32(4095))
            if state < u32(65536):
                if cursor >= ends_b[U(stream)]:
                    return False
                state = (state << u32(16)) | u32(words[cursor])
                cursor += U(1)
            states[lane] = state
            place += U(1)
        cursors_b[U(stream)] = cursor
    return True


def encode_streams(
    symbols_bn: npt.NDArray[np.uint8], contexts: npt.NDArray[np.uint16], table: EntropyTable, lanes: int
) -> list[bytes]:
    ranges = table.ranges_cs.ravel()
    words = np.empty(symbols_bn.shape[1] + 1, np.uint16)
    bodies = []
    for stream, symbols_n in enumerate(symbols_bn):
        contexts_n = contexts if contexts.ndim == 1 else contexts[stream]
        states_l = np.full(lanes, 65536, np.uint32)
        first = _encode_one(symbols_n, contexts_n, ranges, table.alphabet, states_l, words)
        if first < 0:
            raise ValueError("a symbol that has no slot in its context")
        bodies.append(states_l.astype("<u4", copy=False).tobytes() + words[first:].astype("<u2", copy=False).tobytes())
    return bodies


def decode_streams(
    bodies: Sequence[bytes | memoryview], contexts: npt.NDArray[np.uint16], table: EntropyTable, lanes: int
) -> tuple[npt.NDArray[np.uint8], bool]:
    symbols_bn = np.empty((len(bodies), contexts.shape[-1]), np.uint8)
    slots = table.slots_cm.ravel()
    at_once = STREAMS_AT_ONCE if contexts.ndim == 1 else 1
    for first in range(0, len(bodies), at_once):
        part = bodies[first : first + at_once]
        contexts_n = contexts if contexts.ndim == 1 else contexts[first]
        states = np.concatenate([np.frombuffer(body, "<u4", lanes) for body in part]).astype(np.uint32)
        padding = np.zeros(RUN, np.uint16)
        pieces = [piece for body in part for piece in (np.frombuffer(body, "<u2", offset=4 * lanes), padding)]
        words = np.concatenate(pieces).astype(np.uint16, copy=False)
        lengths = np.array([(len(body) - 4 * lanes) // 2 for body in part], np.uint64)
        ends = np.cumsum(lengths + U(RUN)) - U(RUN)
        cursors = ends - lengths
        # A state below the lowest cannot come from an encoder, and a later refill could hide it.
        if (states < 65536).any() or not _decode_together(
            words, cursors, ends, contexts_n, slots, lanes, states, symbols_bn[first : first + at_once]
        ):
            return symbols_bn, False
        if (cursors != ends).any() or (states != 65536).any():
            return symbols_bn, False
    return symbols_bn, True
