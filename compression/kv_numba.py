"""The loops of `kv_transform` and `kv_symbols`, compiled; the same operations in the same order as in numpy.

Shape letters: T tokens, C channels of one kind, R/2 rotated pairs of a head (none for values), B chunks.
Keys or values stand in a row in groups: `run` channels of each kind, `span` from group to group, `skipped` before them.
"""

import numpy as np
import numpy.typing as npt

from .acceleration import compiled

Floats = npt.NDArray[np.float32]
U = np.uint64  # an index type that the compiler need not check for being negative; without, no vector code
u32 = np.uint32


@compiled
def centre(
    stored_tc: npt.NDArray[np.uint16],
    offsets_c: Floats,
    cosines: Floats,
    sines: Floats,
    means_c: Floats,
    head: int,
    run: int,
    span: int,
    skipped: int,
    rows: Floats,
) -> None:
    """bfloat16 bits, minus the offset, turned back by the position, minus the mean."""
    half = U(cosines.shape[1])
    channels = U(stored_tc.shape[1])
    bits = np.empty(stored_tc.shape[1], np.uint32)
    values = bits.view(np.float32)
    for token in range(stored_tc.shape[0]):
        for channel in range(channels):
            bits[U(channel)] = u32(stored_tc[token, U(channel)]) << u32(16)
        if half > U(0):
            for channel in range(channels):
                values[U(channel)] -= offsets_c[U(channel)]
            first = U(0)
            while first < channels:
                for index in range(half):
                    pair = U(index)
                    left = values[first + pair]
                    right = values[first + half + pair]
                    cosine = cosines[token, pair]
                    sine = -sines[token, pair]
                    values[first + pair] = left * cosine - right * sine
                    values[first + half + pair] = right * cosine + left * sine
                first += U(head)
        source = U(0)
        target = U(skipped)
        while source < channels:
            for index in range(U(run)):
                at = source + U(index)
                rows[token, target + U(index)] = values[at] - means_c[at]
            source += U(run)
            target += U(span)


@compiled
def restore(
    rows: Floats,
    offsets_c: Floats,
    cosines: Floats,
    sines: Floats,
    means_c: Floats,
    head: int,
    run: int,
    span: int,
    skipped: int,
    stored_tc: npt.NDArray[np.uint16],
) -> None:
    """Plus the mean, turned to the position, plus the offset, rounded to bfloat16 bits that stay finite."""
    half = U(cosines.shape[1])
    channels = U(stored_tc.shape[1])
    values = np.empty(stored_tc.shape[1], np.float32)
    bits = values.view(np.uint32)
    for token in range(rows.shape[0]):
        target = U(0)
        source = U(skipped)
        while target < channels:
            for index in range(U(run)):
                at = target + U(index)
                values[at] = rows[token, source + U(index)] + means_c[at]
            target += U(run)
            source += U(span)
        if half > U(0):
            first = U(0)
            while first < channels:
                for index in range(half):
                    pair = U(index)
                    left = values[first + pair]
                    right = values[first + half + pair]
                    cosine = cosines[token, pair]
                    sine = sines[token, pair]
                    values[first + pair] = left * cosine - right * sine
                    values[first + half + pair] = right * cosine + left * sine
                first += U(head)
            for channel in range(channels):
                values[U(channel)] += offsets_c[U(channel)]
        for channel in range(channels):
            word = bits[U(channel)]
            size = min(word & u32(0x7FFFFFFF), u32(0x7F7F7FFF))
            rounded = (size + u32(0x7FFF) + ((size >> u32(16)) & u32(1))) >> u32(16)
            stored_tc[token, U(channel)] = np.uint16(rounded | ((word >> u32(16)) & u32(0x8000)))


@compiled
def dequantise(
    numbers_btc: npt.NDArray[np.integer], zero: int, steps_t: Floats, group_width: int, components: Floats
) -> int:
    """Whole numbers, `zero` standing for 0, times their token's step; components: (B * T, C).

    returns: how many of the first channels of each group hold all that is not zero
    """
    tokens = U(numbers_btc.shape[1])
    middle = np.int32(zero)
    used_c = np.zeros(components.shape[1], np.uint8)
    for chunk in range(numbers_btc.shape[0]):
        for place in range(tokens):
            step = steps_t[U(place)]
            row = U(chunk) * tokens + U(place)
            for channel in range(components.shape[1]):
                number = np.int32(numbers_btc[U(chunk), U(place), U(channel)]) - middle
                components[row, U(channel)] = np.float32(number) * step
                used_c[U(channel)] |= np.uint8(number != 0)
    depth = 0
    for channel in range(components.shape[1]):
        if used_c[channel]:
            depth = max(depth, channel % group_width + 1)
    return depth


@compiled
def quantise(
    components: Floats,
    scales_t: Floats,
    kinds_t: npt.NDArray[np.uint8],
    limits_kc: Floats,
    symbols_btc: npt.NDArray[np.uint8],
    escapes: npt.NDArray[np.uint32],
) -> None:
    """Symbols of (B * T, C) components, 121 for what is beyond its limit; escapes: (B * T,) how many of a row are."""
    tokens = U(symbols_btc.shape[1])
    for chunk in range(symbols_btc.shape[0]):
        for place in range(tokens):
            scale = scales_t[U(place)]
            kind = U(kinds_t[U(place)])
            row = U(chunk) * tokens + U(place)
            count = u32(0)
            for channel in range(components.shape[1]):
                at = U(channel)
                scaled = np.rint(components[row, at] * scale)
                inside = np.abs(scaled) <= limits_kc[kind, at]
                symbols_btc[U(chunk), U(place), at] = np.uint8(scaled + np.float32(60) if inside else np.float32(121))
                count += u32(not inside)
            escapes[row] = count
