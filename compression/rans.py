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
from .entropy_table import RECIPROCAL_SHIFT, SLOT_BITS, SLOTS, EntropyTable
from .errors import MalformedPayload

LOWEST_STATE = 1 << 16
WORD_BITS = 16
EMIT_SHIFT = 32 - SLOT_BITS
MAXIMUM_LANES = 2048

Symbols = npt.NDArray[np.uint8]
Contexts = npt.NDArray[np.uint16]


def lanes_for(symbols: int) -> int:
    """Lanes that cost (2 bytes each) well below one per cent of the stream: a power of two up to 1024."""
    return 1 << max(0, min(10, (symbols // 1024).bit_length() - 1))


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
    steps = -(-count // lanes)
    frequencies = table.frequencies_cs.ravel().astype(np.uint64)
    starts = table.starts_cs.ravel().astype(np.uint64)
    reciprocals = table.reciprocals_cs.ravel()
    states_bl = np.full((streams, lanes), LOWEST_STATE, np.uint64)
    # Rows of emitted words, and which of them count, in the order of the decoder's steps.
    words_sbl = np.zeros((steps, streams, lanes), np.uint16)
    emitted_sbl = np.zeros((steps, streams, lanes), np.bool_)
    offsets = contexts.astype(np.int64) * table.alphabet
    for step in range(steps - 1, -1, -1):
        first, last = step * lanes, min(count, (step + 1) * lanes)
        width = last - first
        entries = symbols_bn[:, first:last] + offsets[..., first:last]
        frequency = frequencies[entries]
        state = states_bl[:, :width]
        if not frequency.all():
            raise ValueError("a symbol that has no slot in its context")
        emit = state >= (frequency << np.uint64(EMIT_SHIFT))
        words_sbl[step, :, :width] = state
        emitted_sbl[step, :, :width] = emit
        state = np.where(emit, state >> np.uint64(WORD_BITS), state)
        quotient = (state * reciprocals[entries]) >> np.uint64(RECIPROCAL_SHIFT)
        states_bl[:, :width] = state + quotient * (np.uint64(SLOTS) - frequency) + starts[entries]
    states = states_bl.astype("<u4")
    bodies = []
    for stream in range(streams):
        words = words_sbl[:, stream][emitted_sbl[:, stream]]
        bodies.append(states[stream].tobytes() + words.astype("<u2", copy=False).tobytes())
    return bodies


def _decode(
    bodies: Sequence[bytes | memoryview], contexts: Contexts, table: EntropyTable, lanes: int
) -> tuple[Symbols, bool]:
    streams, count = len(bodies), contexts.shape[-1]
    steps = -(-count // lanes)
    head = 4 * lanes
    states_bl = np.empty((streams, lanes), np.uint32)
    for stream, body in enumerate(bodies):
        states_bl[stream] = np.frombuffer(body, "<u4", lanes)
    if (states_bl < LOWEST_STATE).any():
        return np.empty((0, 0), np.uint8), False
    words = np.concatenate(
        [np.frombuffer(body, "<u2", offset=head) for body in bodies] + [np.zeros(1, np.uint16)]
    ).astype(np.uint32)
    lengths = np.array([(len(body) - head) // 2 for body in bodies], np.int64)
    ends = np.cumsum(lengths)
    cursors = ends - lengths
    slots = table.slots_cm.ravel()
    offsets = contexts.astype(np.int64) * SLOTS
    symbols_bn = np.empty((streams, count), np.uint8)
    for step in range(steps):
        first, last = step * lanes, min(count, (step + 1) * lanes)
        state = states_bl[:, : last - first]
        # Every index is inside by construction; clipping only spares numpy its check.
        entry = slots.take((state & np.uint32(SLOTS - 1)) + offsets[..., first:last], mode="clip")
        symbols_bn[:, first:last] = entry  # the low byte
        frequency = (entry >> np.uint32(20)) + np.uint32(1)
        state = frequency * (state >> np.uint32(SLOT_BITS)) + ((entry >> np.uint32(8)) & np.uint32(SLOTS - 1))
        short = state < LOWEST_STATE
        taken = np.cumsum(short, axis=1, dtype=np.int32)
        # Reads before the first and behind the last word are of lanes that need none, or of a stream to be refused.
        refilled = (state << np.uint32(WORD_BITS)) | words.take(taken + (cursors - 1)[:, None], mode="clip")
        states_bl[:, : last - first] = np.where(short, refilled, state)
        cursors += taken[:, -1]
    intact = bool((cursors == ends).all() and (states_bl == LOWEST_STATE).all())
    return symbols_bn, intact
