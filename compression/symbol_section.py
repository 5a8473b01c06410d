"""Small symbols inside a payload: range coded with tables that travel along, or plain bits where that is shorter.

Layout: mode u8; mode 0: the symbols as fields of ceil(log2(alphabet)) bits; mode 1: the tables of all contexts, the
length of the stream as u32, the stream.
"""

import numpy as np
import numpy.typing as npt

from .bit_fields import pack_uniform, packed_bytes, unpack_uniform
from .byte_reader import ByteReader
from .entropy_table import pack_table, parse_table, table_from_counts
from .errors import MalformedPayload
from .rans import decode_streams, encode_streams, lanes_for

PLAIN, CODED = 0, 1
COUNTED_AT_ONCE = 1 << 18


def encode_symbols(
    symbols_n: npt.NDArray[np.uint8],
    contexts_n: npt.NDArray[np.uint16],
    contexts: int,
    alphabet: int,
    accelerate: bool | None = None,
) -> bytes:
    width = max(1, (alphabet - 1).bit_length())
    plain_bytes = 1 + packed_bytes(len(symbols_n) * width)
    if len(symbols_n) >= 64:
        counts = _counts(symbols_n, contexts_n, contexts, alphabet)
        table = table_from_counts(counts)
        head = bytes([CODED]) + pack_table(table)
        if len(head) + 4 + table.cost_bits(counts) / 8 < plain_bytes:
            lanes = lanes_for(len(symbols_n))
            (body,) = encode_streams(symbols_n[None], contexts_n, table, lanes, accelerate)
            coded = head + len(body).to_bytes(4, "little") + body
            if len(coded) < plain_bytes:
                return coded
    return bytes([PLAIN]) + pack_uniform(symbols_n, width)


def _counts(
    symbols_n: npt.NDArray[np.uint8], contexts_n: npt.NDArray[np.uint16], contexts: int, alphabet: int
) -> npt.NDArray[np.int64]:
    """(contexts, alphabet); in pieces, as counting takes 16 bytes a symbol."""
    counts = np.zeros(contexts * alphabet, np.int64)
    for first in range(0, len(symbols_n), COUNTED_AT_ONCE):
        cut = slice(first, first + COUNTED_AT_ONCE)
        entries = contexts_n[cut].astype(np.int64) * alphabet + symbols_n[cut]
        counts += np.bincount(entries, minlength=contexts * alphabet)
    return counts.reshape(contexts, alphabet)


def decode_symbols(
    reader: ByteReader,
    contexts_n: npt.NDArray[np.uint16],
    contexts: int,
    alphabet: int,
    accelerate: bool | None = None,
) -> npt.NDArray[np.uint8]:
    """raises: MalformedPayload"""
    count = len(contexts_n)
    mode = reader.number("B")
    match mode:
        case 0:
            symbols: npt.NDArray[np.int64] = unpack_uniform(reader, count, max(1, (alphabet - 1).bit_length()))
            if count and int(symbols.max()) >= alphabet:
                raise MalformedPayload("a symbol outside its alphabet")
            return symbols.astype(np.uint8)
        case 1:
            head = reader.take(reader.left)
            table, behind = parse_table(head, 0, contexts, alphabet)
            rest = ByteReader(head[behind:])
            body = rest.take(rest.number("I"))
            reader.give_back(rest.left)
            return np.asarray(decode_streams([body], contexts_n, table, lanes_for(count), accelerate)[0])
        case _:
            raise MalformedPayload(f"symbols in a mode {mode} that does not exist")
