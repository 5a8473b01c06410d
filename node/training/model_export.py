"""A trained model as a Hugging Face folder: what transformers loads and `shoal up FOLDER` serves as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal.node.manifest_builder import parse_config
from shoal.node.transformers_imports import causal_model_class
from shoal.swarm.errors import UsageError

from .checkpoints.tensor_file import Array, Buffer, TensorSpec
from .model_folder import MAX_FILE_BYTES, new_folder, with_dtype, write_texts, write_weights

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def export_model(
    parameters: Mapping[str, Array],
    texts: Mapping[str, bytes],
    out: Path,
    dtype: str = "float32",
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a new folder.

    parameters: float32 by the names that the model itself has for them, tied ones once
    texts: the model's small files by name, with config.json; the tokenizer goes along as it is
    raises: UsageError when the parameters are not those of the configuration, or `out` exists; OutOfMemory
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: write {', '.join(DTYPES)}")
    if "config.json" not in texts:
        raise UsageError("a model without a config.json cannot be exported")
    _check_complete(parameters, parse_config(texts["config.json"], "config.json"))
    specs = [TensorSpec(name, DTYPES[dtype], parameters[name].shape) for name in sorted(parameters)]
    with new_folder(out, sum(spec.size_bytes for spec in specs)) as folder:
        write_weights(folder, specs, lambda spec: converted(parameters[spec.name], dtype), max_file_bytes)
        write_texts(folder, {**texts, "config.json": with_dtype(texts["config.json"], dtype)})


def converted(values: Array, dtype: str) -> Buffer:
    """float32 in the bytes of another dtype, rounded to nearest, ties to even.

    raises: UsageError when a value has no finite counterpart
    """
    source = np.ascontiguousarray(values, "<f4").reshape(-1)
    if not np.isfinite(source).all():
        raise UsageError("the parameters are not all finite; this model cannot be exported")
    match dtype:
        case "float32":
            made: Array = source
        case "float16":
            with np.errstate(over="ignore"):
                made = source.astype("<f2")
            if not np.isfinite(made).all():
                raise UsageError("some parameters are too large for float16; export as bfloat16 or float32")
        case _:
            bits = source.view("<u4")
            made = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
                "<u2"
            )
    return made.view(np.uint8).data


def _check_complete(parameters: Mapping[str, Array], config: dict[str, Any]) -> None:
    """raises: UsageError naming a parameter that is missing, of another shape, or not of this model"""
    expected = model_shapes(config)
    for name, shape in expected.items():
        if name not in parameters:
            raise UsageError(f"the checkpoint lacks {name}, which the model of this config.json has")
        if parameters[name].shape != shape:
            found = "x".join(map(str, parameters[name].shape))
            raise UsageError(f"{name} is {found} in the checkpoint and {'x'.join(map(str, shape))} in config.json")
    extra = sorted(set(parameters) - set(expected))
    if extra:
        raise UsageError(f"the checkpoint holds {extra[0]}, which the model of this config.json does not have")


def model_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters of a model by name, tied ones once; no memory is taken for them. raises: UsageError"""
    import torch

    architecture = str((config.get("architectures") or [""])[0])
    model_class = causal_model_class(architecture, str(config.get("model_type", "")))
    try:
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_dict(dict(config)))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UsageError(f"transformers cannot build {architecture} from this config.json: {error}") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
