"""A trainer's states of the last rounds, on disk, so that a judge may ask for any of them.

`STEPS/ROUND/parameters.K` and `moments.K` for the state where the work began (0) and at the end of interval K;
`residual`, what the encoder had left out before; `payloads`, what was offered.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shoal.compression.update_codec import Values
from shoal.node.training.checkpoints.snapshot import Value
from shoal.node.training.update_audit import StepState, values_digest
from shoal.swarm.errors import MalformedMessage

KEPT_ROUNDS = 3  # the one that runs, the last, and the one before, which a judge may still be fetching
NOTHING = bytes(32)  # digest of an error feedback that holds nothing
RESIDUAL, PAYLOADS = "residual", "payloads"
_encoder = msgspec.msgpack.Encoder()


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """dtype: empty for a plain number, which is packed as an array of one"""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


_moments = msgspec.msgpack.Decoder(list[_Packed])
_payloads = msgspec.msgpack.Decoder(tuple[bytes, ...])
_DTYPES = {"<f4", "<f8", "<i8", "<i4"}  # of moments; nothing else is unpacked


def parameters_name(state: int) -> str:
    return f"parameters.{state}"


def moments_name(state: int) -> str:
    return f"moments.{state}"


class KeptWork:
    """raises, everywhere: OSError when the disk is full or gone"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)  # of a process before this one: it claims no more

    def begin(self, round_: int, residual: Values | None) -> None:
        """Room for a round; the oldest goes."""
        (self._folder / str(round_)).mkdir(parents=True, exist_ok=True)
        rounds = sorted((int(path.name) for path in self._folder.iterdir() if path.name.isdigit()), reverse=True)
        for old in rounds[KEPT_ROUNDS:]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)
        if residual is not None:
            self._write(round_, RESIDUAL, values_bytes(residual))

    def keep_state(self, round_: int, number: int, state: StepState) -> None:
        self._write(round_, parameters_name(number), values_bytes(state.parameters))
        self._write(round_, moments_name(number), packed_moments(state.moments))

    def keep_payloads(self, round_: int, payloads: Sequence[bytes]) -> None:
        self._write(round_, PAYLOADS, _encoder.encode(payloads))

    def read(self, round_: int, name: str, offset: int, count: int) -> tuple[int, bytes] | None:
        """Size of the file, and its bytes from `offset` on. None: it is not kept"""
        if "/" in name or name.startswith("."):
            return None
        with contextlib.suppress(OSError), (self._folder / str(round_) / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(offset)
            return size, file.read(count)
        return None

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, round_: int, name: str, data: bytes) -> None:
        (self._folder / str(round_) / name).write_bytes(data)


def residual_digest(residual: Values | None) -> bytes:
    return NOTHING if residual is None or not residual.any() else values_digest(residual)


def values_bytes(values: Values) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()


def values_of(data: bytes) -> Values:
    """raises: MalformedMessage"""
    if len(data) % 4:
        raise MalformedMessage("not a row of numbers")
    return np.frombuffer(data, "<f4").astype(np.float32)


def packed_moments(moments: Mapping[str, Value]) -> bytes:
    packed = []
    for name in sorted(moments):
        value = moments[name]
        array = np.ascontiguousarray(value)
        shape = np.shape(value)
        packed.append(_Packed(name, array.dtype.str, shape, array.tobytes()))
    return _encoder.encode(packed)


def moments_of(data: bytes) -> dict[str, Value]:
    """raises: MalformedMessage, whatever the bytes are"""
    found: dict[str, Value] = {}
    try:
        for each in _moments.decode(data):
            if each.dtype not in _DTYPES:
                raise MalformedMessage(f"moments of the kind {each.dtype[:8]}")
            found[each.name] = np.frombuffer(each.data, each.dtype).reshape(each.shape).copy()
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedMessage(f"not the moments of an optimiser: {error}") from error
    return found


def payloads_of(data: bytes) -> tuple[bytes, ...]:
    """raises: MalformedMessage"""
    try:
        return _payloads.decode(data)
    except msgspec.MsgspecError as error:
        raise MalformedMessage(f"not payloads: {error}") from error
