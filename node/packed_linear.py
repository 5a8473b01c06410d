"""A linear layer for float32 on CPU, with its weight in the order in which the processor reads it.

Generating a token multiplies every weight by one row, so the speed is that of memory. torch's default order reads at
10 GB/s where oneDNN's blocked order reads at 20 or more, and several sessions at once gain twice to three times
again. Measured on AVX-512 with one thread, weight 32000 x 512, microseconds for 1 / 4 / 8 / 64 rows: torch 8800 /
13600 / 12800 / 36900, blocked 6100 / 3400 / 4800 / 20900. One row is slower than four there, hence the padding.
"""

import platform

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_BOTH_FROM = 1 << 17  # values: smaller weights stay in the cache, where the plain kernel has less overhead
_PACK_FROM = 1 << 18  # values: between the two, one session is faster with the plain order and several with the other
_FEW_ROWS = 2  # up to so many the plain order is as fast or faster
_PAD_FROM = 1 << 19  # values: from here on reading the weight costs more than three rows of zeros
_PAD_ROWS = 4


class PackedLinear(nn.Module):
    """(..., in) -> (..., out); holds the packed weight only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: (out, in) float32 on CPU; it may be freed afterwards."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)  # noqa: SLF001
        self._bias = None if bias is None else bias.detach().clone()
        self._pads = weight.numel() >= _PAD_FROM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        count = rows.shape[0]
        if self._pads and count < _PAD_ROWS:
            rows = F.pad(rows, (0, 0, 0, _PAD_ROWS - count))
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")  # noqa: SLF001
        if out.shape[0] != count:
            out = out[:count]
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self.out_features)


class PlainLinear(nn.Module):
    """The same interface for small weights; wide ones are stored transposed, which one row reads faster."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        wide = weight.shape[0] > weight.shape[1]
        self._weight = weight.detach().t().contiguous().t() if wide else weight.detach().clone()
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class BothLinear(nn.Module):
    """The same interface for weights of half a megabyte to one, held in both orders."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._plain, self._packed = PlainLinear(weight, bias), PackedLinear(weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self._plain if x.shape[-2] <= _FEW_ROWS else self._packed).forward(x)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    return (
        dtype == torch.float32
        and device.type == "cpu"
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


FastLinear = PackedLinear | PlainLinear | BothLinear


def fast_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> FastLinear:
    """The best of the three for this size."""
    if weight.numel() < _BOTH_FROM:
        return PlainLinear(weight, bias)
    return (PackedLinear if weight.numel() >= _PACK_FROM else BothLinear)(weight, bias)


def pack_linears(module: nn.Module) -> None:
    """Replace every nn.Linear inside a module, one at a time, so that no more than one is held twice."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, fast_linear(child.weight, child.bias))
        else:
            pack_linears(child)
