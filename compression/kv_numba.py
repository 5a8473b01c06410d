"""The loops of `kv_transform` and `kv_shoal` over bfloat16 blocks, compiled; same operations, same order as numpy.

Shape letters: L layers, T tokens, C channels, R/2 rotated pairs of a head (none for values).
"""

import numpy as np
import numpy.typing as npt

from .acceleration import compiled

Floats = npt.NDArray[np.float32]
u32 = np.uint32


@compiled
def centre(
    stored_ltc: npt.NDArray[np.uint16],
    offsets_lc: Floats,
    cosines: Floats,
    sines: Floats,
    means_lc: Floats,
    width: int,
    out_ltc: Floats,
) -> None:
    """bfloat16 bits, minus the offset, turned back by the position, minus the mean."""
    half = cosines.shape[1]
    channels = stored_ltc.shape[2]
    row = np.empty(channels, np.uint32)
    values = row.view(np.float32)
    for layer in range(stored_ltc.shape[0]):
        for token in range(stored_ltc.shape[1]):
            for channel in range(channels):
                row[channel] = u32(stored_ltc[layer, token, channel]) << u32(16)
            for channel in range(channels):
                values[channel] -= offsets_lc[layer, channel]
            for first in range(0, channels, width):
                for pair in range(half):
                    left = values[first + pair]
                    right = values[first + half + pair]
                    cosine = cosines[token, pair]
                    sine = -sines[token, pair]
                    values[first + pair] = left * cosine - right * sine
                    values[first + half + pair] = right * cosine + left * sine
            for channel in range(channels):
                out_ltc[layer, token, channel] = values[channel] - means_lc[layer, channel]


@compiled
def restore(
    centred_ltc: Floats,
    means_lc: Floats,
    cosines: Floats,
    sines: Floats,
    offsets_lc: Floats,
    width: int,
    out_ltc: npt.NDArray[np.uint16],
) -> None:
    """Plus the mean, turned to the position, plus the offset, rounded to bfloat16 bits that stay finite."""
    half = cosines.shape[1]
    channels = centred_ltc.shape[2]
    values = np.empty(channels, np.float32)
    bits = values.view(np.uint32)
    largest = np.float32(3.4028235e38)
    for layer in range(centred_ltc.shape[0]):
        for token in range(centred_ltc.shape[1]):
            for channel in range(channels):
                values[channel] = centred_ltc[layer, token, channel] + means_lc[layer, channel]
            for first in range(0, channels, width):
                for pair in range(half):
                    left = values[first + pair]
                    right = values[first + half + pair]
                    cosine = cosines[token, pair]
                    sine = sines[token, pair]
                    values[first + pair] = left * cosine - right * sine
                    values[first + half + pair] = right * cosine + left * sine
            for channel in range(channels):
                values[channel] = min(max(values[channel] + offsets_lc[layer, channel], -largest), largest)
            for channel in range(channels):
                word = bits[channel]
                rounded = (word + u32(0x7FFF) + ((word >> u32(16)) & u32(1))) >> u32(16)
                beyond = (rounded & u32(0x7FFF)) >= u32(0x7F80)
                kept = (rounded & u32(0x8000)) | u32(0x7F7F)
                out_ltc[layer, token, channel] = np.uint16(kept if beyond else rounded)


@compiled
def dequantise(symbols_bltc: npt.NDArray[np.uint8], steps_t: Floats, first_layer: int, out_ltc: Floats) -> None:
    """The symbols of one kind as components; escapes come out wrong and are mended after."""
    tokens = symbols_bltc.shape[2]
    for layer in range(out_ltc.shape[0]):
        for chunk in range(symbols_bltc.shape[0]):
            for place in range(tokens):
                step = steps_t[place]
                for channel in range(out_ltc.shape[2]):
                    number = np.int32(symbols_bltc[chunk, first_layer + layer, place, channel]) - np.int32(60)
                    out_ltc[layer, chunk * tokens + place, channel] = np.float32(number) * step


@compiled
def quantise(
    components_ltc: Floats,
    scales_t: Floats,
    limits_ltc: Floats,
    tokens: int,
    first_layer: int,
    out_bltc: npt.NDArray[np.uint8],
) -> None:
    """Symbols of one kind, in the order of the chunks; 121 for what is beyond its limit.

    limits: (L, tokens, C) for the tokens of one chunk, the same for each
    """
    for layer in range(components_ltc.shape[0]):
        for token in range(components_ltc.shape[1]):
            chunk = token // tokens
            place = token - chunk * tokens
            scale = scales_t[place]
            row = components_ltc[layer, token]
            limits = limits_ltc[layer, place]
            symbols = out_bltc[chunk, first_layer + layer, place]
            for channel in range(row.shape[0]):
                scaled = np.rint(row[channel] * scale)
                inside = np.abs(scaled) <= limits[channel]
                symbols[channel] = np.uint8(scaled + np.float32(60) if inside else np.float32(121))
