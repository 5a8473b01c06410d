"""Any bytes decode or are refused: corrupted, cut, resealed or invented payloads of every codec."""

import random
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_samples import block, profile

from shoal.compression.container import CODECS, TensorSpec, codec_of, frame_bytes, seal, sealed_bytes, unseal
from shoal.compression.errors import MalformedPayload
from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock
from shoal.compression.kv_cachegen import CacheGen
from shoal.compression.kv_cachegen_reference import CacheGenReference
from shoal.compression.kv_lossless import encode_raw
from shoal.compression.kv_profile import parse_profile
from shoal.compression.presets import PRESETS


@dataclass(frozen=True)
class Coded:
    payload: bytes
    decode: Callable[[bytes], object]


def _made() -> dict[str, Coded]:
    values = np.random.default_rng(1).standard_t(3, 9000).astype(np.float32)
    made = {
        name: Coded(codec.encode(values, 3), lambda data, codec=codec: codec.decode(data, 9000, 3))
        for name, codec in PRESETS.items()
    }
    kv, prof = block(20), profile()

    def kv_decoder(data: bytes) -> KvBlock:
        return decode_kv([data], kv.shape, prof)

    made["kv lossless"] = Coded(encode_kv(kv)[0], kv_decoder)
    made["kv raw"] = Coded(encode_raw(kv), kv_decoder)
    made["kv shoal"] = Coded(encode_kv(kv, "near-lossless", prof, fine_tokens=7)[0], kv_decoder)
    made["kv progressive"] = Coded(encode_kv(kv, "near-lossless", prof, progressive=True)[0], kv_decoder)
    fitted = CacheGen.fit([block(40, seed=2)], 1.0)
    made["cachegen"] = Coded(fitted.encode(kv), lambda data: fitted.decode(data, kv.shape))
    reference = CacheGenReference()
    made["cachegen-reference"] = Coded(reference.encode(kv), lambda data: reference.decode(data, kv.shape))
    made["profile"] = Coded(prof.packed, parse_profile)
    return made


MADE = _made()
# Some hundred times the tensors of these payloads, and as much as 49 tables of the range coder take.
ALLOCATED_BYTES = 8 << 20


@pytest.mark.parametrize("name", MADE)
def test_ten_thousand_random_corruptions_are_all_found(name: str) -> None:
    coded, generator = MADE[name], random.Random(f"corrupt {name}")
    coded.decode(coded.payload)
    for _ in range(10_000):
        wrong = bytearray(coded.payload)
        kind = generator.randrange(4)
        at = generator.randrange(len(wrong))
        if kind == 0:
            wrong[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            stretch = wrong[at : at + 16]
            wrong[at : at + len(stretch)] = bytes(b ^ generator.randrange(1, 256) for b in stretch)
        elif kind == 2:
            del wrong[at:]
        else:
            wrong[at:at] = generator.randbytes(generator.randrange(1, 5))
        with pytest.raises(MalformedPayload):
            coded.decode(bytes(wrong))


@pytest.mark.parametrize("name", MADE)
def test_a_resealed_corruption_decodes_or_is_refused_and_nothing_else(name: str) -> None:
    coded, generator = MADE[name], random.Random(f"reseal {name}")
    outcomes = set()
    for _ in range(250):
        wrong = bytearray(coded.payload[:-4])
        for _ in range(generator.randrange(1, 4)):
            wrong[generator.randrange(frame_start(coded.payload), len(wrong))] = generator.randrange(256)
        wrong += google_crc32c.value(bytes(wrong)).to_bytes(4, "little")
        try:
            coded.decode(bytes(wrong))
            outcomes.add("decoded")
        except MalformedPayload:
            outcomes.add("refused")
    assert outcomes


@pytest.mark.parametrize("name", MADE)
def test_no_body_makes_its_reader_allocate_more_than_its_tensors_and_tables_need(name: str) -> None:
    coded, generator = MADE[name], random.Random(f"allocate {name}")
    start = frame_start(coded.payload)
    body = coded.payload[start + 4 : -4]
    # Nothing, the largest of all numbers, the head of a zstd frame that declares 1 GiB, and large lengths anywhere.
    bodies = [b"", bytes([255]) * len(body), bytes([0x28, 0xB5, 0x2F, 0xFD, 0xA4, 0, 0, 0, 0x40]) + bytes(64)]
    for _ in range(40):
        wrong = bytearray(body)
        at = generator.randrange(len(wrong))
        wrong[at : at + 4] = bytes([255] * generator.randrange(1, 5))
        bodies.append(bytes(wrong))
    coded.decode(coded.payload)  # what is kept between calls is there
    for wrong_body in bodies:
        made = coded.payload[:start] + len(wrong_body).to_bytes(4, "little") + wrong_body
        made += google_crc32c.value(made).to_bytes(4, "little")
        tracemalloc.start()
        try:
            with suppress(MalformedPayload):
                coded.decode(made)
            assert tracemalloc.get_traced_memory()[1] < ALLOCATED_BYTES
        finally:
            tracemalloc.stop()


def frame_start(payload: bytes) -> int:
    return 7 + sum(2 + 4 * payload[8 + 18 * i] for i in range(payload[6])) if payload[6] else 7


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_behind_a_right_frame_decode_or_are_refused(name: str, data: st.DataObject) -> None:
    coded = MADE[name]
    body = data.draw(st.binary(max_size=400))
    head = coded.payload[: frame_start(coded.payload)]
    made = head + len(body).to_bytes(4, "little") + body
    made += google_crc32c.value(made).to_bytes(4, "little")
    try:
        coded.decode(made)
    except MalformedPayload:
        return


@given(st.binary(max_size=200))
def test_invented_bytes_are_no_payload(data: bytes) -> None:
    for coded in MADE.values():
        with pytest.raises(MalformedPayload):
            coded.decode(data)


def test_a_payload_for_other_tensors_or_another_codec_is_refused() -> None:
    specs = [TensorSpec((3, 5)), TensorSpec((2,), "bfloat16")]
    data = seal("int8", specs, b"body")
    assert bytes(unseal(data, "int8", specs)) == b"body"
    assert codec_of(data) == "int8"
    assert sealed_bytes(data, specs) == len(data) == frame_bytes(specs) + 4
    for codec, other in (("fp4", specs), ("int8", specs[:1]), ("int8", [TensorSpec((5, 3)), specs[1]])):
        with pytest.raises(MalformedPayload):
            unseal(data, codec, other)


def test_codec_numbers_are_never_reused() -> None:
    assert len(set(CODECS.values())) == len(CODECS)


def test_a_payload_that_claims_to_be_huge_allocates_nothing() -> None:
    specs = [TensorSpec((8,))]
    data = bytearray(seal("none", specs, bytes(32)))
    data[13:17] = (0xFFFFFFFF).to_bytes(4, "little")
    with pytest.raises(MalformedPayload, match="says it has"):
        PRESETS["none"].decode(bytes(data), 8)
