"""Read the tensors of some units from safetensors files into a skeleton, one unit at a time and nothing else.

Names and layouts of older checkpoints (experts in single tensors, renamed heads) are converted by transformers' own
rules.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.manifest import Manifest, TensorEntry

from .model_skeleton import Skeleton
from .model_units import tensors_of_units
from .transformers_imports import Untyped, import_quickly

UnitDone = Callable[[int], None]


class WeightReader:
    """Fills units of a skeleton from the files in a folder."""

    def __init__(
        self, skeleton: Skeleton, manifest: Manifest, folder: Path, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._skeleton, self._manifest, self._folder = skeleton, manifest, folder
        self._dtype, self._device = dtype, device
        self._units = tensors_of_units(manifest)
        self._loading: Untyped = import_quickly("transformers.core_model_loading")
        mapping = import_quickly("transformers.conversion_mapping").get_model_conversion_mapping
        self._conversions: Callable[[], list[Untyped]] = lambda: mapping(skeleton.model)
        self._plan = skeleton.model._get_dtype_plan(dtype)  # noqa: SLF001  parameters that a family keeps in float32
        import_quickly("transformers.utils.logging").disable_progress_bar()

    def fill(self, unit: int, modules: Iterable[nn.Module]) -> None:
        """Load one unit; afterwards no parameter or buffer of `modules` is on the meta device.

        raises: UsageError naming the file or the tensor; OutOfMemory
        """
        head = unit == self._manifest.layers + 1
        try:
            with ExitStack() as files:
                self._convert(self._slices(self._units[unit], files), head)
            for module in modules:
                module.to(self._device)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OutOfMemory(f"no memory left while loading unit {unit} of {self._manifest.name}") from error
        except NotImplementedError as error:  # torch: cannot copy out of meta tensor
            raise UsageError(self._lacking(unit, modules)) from error
        if any(p.is_meta for module in modules for p in module.parameters()):
            raise UsageError(self._lacking(unit, modules))

    def _slices(self, entries: tuple[TensorEntry, ...], files: ExitStack) -> dict[str, Any]:
        opened: dict[str, Any] = {}
        slices = {}
        for entry in entries:
            try:
                if entry.file not in opened:
                    path = self._folder / entry.file
                    opened[entry.file] = files.enter_context(safe_open(path, framework="pt", device="cpu"))
                slices[entry.name] = opened[entry.file].get_slice(entry.name)
            except (OSError, SafetensorError) as error:
                raise UsageError(f"{entry.file} cannot be read: {error}") from error
            if tuple(slices[entry.name].get_shape()) != entry.shape:
                raise UsageError(f"{entry.file} has changed: {entry.name} has another shape than the manifest says")
        return slices

    def _convert(self, slices: dict[str, Any], head: bool) -> None:
        skeleton, prefix = self._skeleton, ""
        if head and all(name in self._embedding_names() for name in slices if len(slices[name].get_shape()) == 2):
            # tied: the embedding's matrix is read again, as the head's own
            for name, module in skeleton.model.named_modules():
                prefix = f"{name}.weight" if module is skeleton.head else prefix
            slices = {prefix if name in self._embedding_names() else name: part for name, part in slices.items()}
        config = import_quickly("transformers.modeling_utils").LoadStateDictConfig(
            dtype=self._dtype,
            dtype_plan=self._plan,
            device_map={"": "cpu"},
            weight_mapping=self._conversions(),
        )
        info, _ = self._loading.convert_and_load_state_dict_in_model(skeleton.model, slices, config)
        if info.mismatched_keys or info.conversion_errors or info.error_msgs:
            wrong = [*map(str, info.mismatched_keys), *info.conversion_errors, *info.error_msgs]
            raise UsageError(f"the tensors of {self._manifest.name} do not fit its config.json: {wrong[0]}")

    def _embedding_names(self) -> set[str]:
        return {entry.name for entry in self._units[0]}

    def _lacking(self, unit: int, modules: Iterable[nn.Module]) -> str:
        lacking = [name for module in modules for name, p in module.named_parameters() if p.is_meta]
        return f"{self._manifest.name}: the checkpoint lacks {', '.join(lacking[:3]) or 'tensors'} of unit {unit}"


def own_memory(module: nn.Module) -> None:
    """Copy the parameters that still lie in a mapped file, so that the mapping ends and the file may be deleted."""
    for parameter in module.parameters():
        if parameter.untyped_storage().nbytes() > parameter.nbytes:
            parameter.data = parameter.data.clone()
