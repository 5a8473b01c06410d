"""A model's trainable parameters as one flat float32 vector: read, written, and their gradients."""

import numpy as np
import torch
from torch import nn

from shoal.compression.update_codec import Values

from .parameter_layout import ParameterLayout


class ModelParameters:
    """raises: ValueError for a model without trainable parameters, or with some that are not float32

    Tensors that are tied count once. With bf16 the forward pass runs under autocast; the parameters stay float32, as a
    pseudo-gradient is a small difference of large values.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        other = [name for name, p in self._parameters.items() if p.dtype != torch.float32]
        if other:
            raise ValueError(f"parameters to be trained must be float32; {other[0]} is not")
        self.layout = ParameterLayout.of({name: tuple(p.shape) for name, p in self._parameters.items()})

    def read(self, start: int = 0, stop: int | None = None) -> Values:
        """(stop - start,) a copy. raises: ValueError for a range that cuts a tensor"""
        return self._gather({name: p.data for name, p in self._parameters.items()}, start, stop)

    def gradients(self, start: int = 0, stop: int | None = None) -> Values:
        """(stop - start,) a copy; zero where there is no gradient. raises: ValueError"""
        return self._gather({name: p.grad for name, p in self._parameters.items()}, start, stop)

    def write(self, start: int, values: Values) -> None:
        """raises: ValueError for a range that cuts a tensor"""
        with torch.no_grad():
            for place in self.layout.within(start, start + len(values)):
                part = values[place.start - start : place.stop - start].reshape(place.shape)
                self._parameters[place.name].copy_(torch.from_numpy(np.ascontiguousarray(part)))

    def _gather(self, tensors: dict[str, torch.Tensor | None], start: int, stop: int | None) -> Values:
        places = self.layout.within(start, self.layout.count if stop is None else stop)
        gathered = np.zeros(places[-1].stop - start, np.float32)
        for place in places:
            tensor = tensors[place.name]
            if tensor is not None:
                target = torch.from_numpy(gathered[place.start - start : place.stop - start])
                target.copy_(tensor.detach().reshape(-1))
        return gathered
