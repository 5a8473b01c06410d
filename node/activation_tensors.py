"""Activations: bytes on the wire, tensors on the device.

Shapes: N positions, D hidden.
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

import math

import torch

from shoal.compression import activations
from shoal.compression.errors import MalformedPayload
from shoal.swarm.errors import BadActivation

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tensor_of(data: bytes, count: int, hidden: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(N, D) of `dtype` on `device`, from any dtype of the wire.

    raises: BadActivation on another shape, on bytes that are no activation, and on NaN or infinity
    """
    try:
        activation = activations.parse(data, count, hidden)
    except MalformedPayload as error:
        raise BadActivation(str(error)) from error
    body = activation.body
    if activation.dtype == "int8":
        scales = _filled(body[: 4 * count], torch.float32).view(count, 1)
        x = _filled(body[4 * count :], torch.int8).view(count, hidden).float() * scales
    else:
        x = _filled(body, TORCH_DTYPES[activation.dtype]).view(count, hidden)
    if not is_finite(x):
        raise BadActivation(f"hidden states of {count} positions hold NaN or infinity")
    return x.to(device=device, dtype=dtype)


def bytes_of(x_ND: torch.Tensor, dtype: str) -> bytes:
    """An activation of `dtype`: float32, bfloat16, float16, or int8 with one scale per position."""
    count, hidden = x_ND.shape
    if dtype == "int8":
        x = x_ND.float().cpu()
        scales = (x.abs().amax(1, keepdim=True) / 127.0).clamp_min(1e-30)
        values = torch.round(x / scales).to(torch.int8)
        return activations.pack(dtype, count, hidden, _raw(scales) + _raw(values))
    return activations.pack(dtype, count, hidden, _raw(x_ND.to(device="cpu", dtype=TORCH_DTYPES[dtype])))


def is_finite(x: torch.Tensor) -> bool:
    """One sum says so in nearly every case: NaN and infinity spread into it."""
    if math.isfinite(float(x.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(x).all())


def _filled(body: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """A tensor with its own memory, filled with raw values."""
    return torch.frombuffer(bytearray(body), dtype=dtype)


def _raw(x: torch.Tensor) -> bytes:
    x = x.contiguous()
    return x.numpy().tobytes() if x.dtype != torch.bfloat16 else x.view(torch.int16).numpy().tobytes()
