"""Import a transformers model class without the seconds of modules that a node never uses.

Importing any `modeling_*` file of transformers 5 also imports torch's compiler, its distributed tensors, sympy, scipy
and accelerate: 8 to 11 s on a slow machine, of 10 to 14 s in all. The parts that a node calls need none of them.
While the import runs, `torch._dynamo` is a stand-in whose decorators return what they decorate, and the questions "is
accelerate / scipy / torch.distributed there?" are answered no; then everything is put back. What is given up in this
process: torch.compile markings on transformers' functions, `device_map`, tensor parallelism and flex attention.

Process-wide by nature (`sys.modules`), so one lock; a process that has imported transformers' modeling code already, or
torch._dynamo, is left as it is. If the shortcut fails with another version, the plain import is made.
"""

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from shoal.swarm.errors import UsageError

_QUESTIONS = (
    "is_accelerate_available",
    "is_scipy_available",
    "is_sklearn_available",
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
)
_TRACE_MODULE = "torch._dynamo._trace_wrapped_higher_order_op"
Untyped = Any  # what comes from transformers, which has no types that a checker could hold it to
_lock = threading.Lock()
_taken: list[bool] = []  # whether this process takes the shortcut; decided once, as half of each does not fit together


def _as_it_is(decorated: Untyped = None, *_: object, **__: object) -> Untyped:
    return decorated if callable(decorated) else _as_it_is


class _Undecorated(ModuleType):
    """Stands in for torch._dynamo: every name in it is a decorator that changes nothing."""

    def __init__(self) -> None:
        super().__init__("torch._dynamo")
        self.__path__ = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _as_it_is


class _TransformGetItemToIndex:
    """The real context manager, looked up when somebody makes one (mask building under vmap)."""

    def __new__(cls) -> Untyped:
        return importlib.import_module(_TRACE_MODULE).TransformGetItemToIndex()


@contextmanager
def _without_heavy_modules() -> Iterator[None]:
    import torch
    import transformers.utils
    import transformers.utils.import_utils

    compiler, trace = _Undecorated(), ModuleType(_TRACE_MODULE)
    trace.TransformGetItemToIndex = _TransformGetItemToIndex  # type: ignore[attr-defined]
    holders = (transformers.utils, transformers.utils.import_utils)
    answers = {(holder, name): getattr(holder, name) for holder in holders for name in _QUESTIONS}
    try:
        if "torch._dynamo" not in sys.modules:
            sys.modules["torch._dynamo"], sys.modules[_TRACE_MODULE] = compiler, trace
            torch._dynamo = compiler  # noqa: SLF001
        for holder, name in answers:
            setattr(holder, name, lambda *_, **__: False)
        yield
    finally:
        for (holder, name), answer in answers.items():
            setattr(holder, name, answer)
        for name, module in (("torch._dynamo", compiler), (_TRACE_MODULE, trace)):
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is compiler:
            del torch._dynamo  # noqa: SLF001


def import_quickly(name: str) -> ModuleType:
    """raises: ImportError when there is no such module"""
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        if not _taken:
            _taken.append("torch._dynamo" not in sys.modules and "transformers.modeling_utils" not in sys.modules)
        if not _taken[0]:
            return importlib.import_module(name)
        try:
            with _without_heavy_modules():
                return importlib.import_module(name)
        except (ImportError, AttributeError, NameError, TypeError):
            return importlib.import_module(name)


def causal_model_class(architecture: str, model_type: str) -> Untyped:
    """The transformers class for a checkpoint; only names that transformers itself lists are ever looked up.

    raises: UsageError when transformers has no such text model, or it cannot take an attention function from outside
    """
    listed = import_quickly("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names = listed.get(model_type, ())
    if architecture not in ((names,) if isinstance(names, str) else tuple(names)):
        raise UsageError(
            f"{architecture or 'a model without a named architecture'} (model type {model_type!r}) is not a causal "
            "language model of the installed transformers; code from model repositories is never run"
        )
    folder = import_quickly("transformers.models.auto.configuration_auto").model_type_to_module_name(model_type)
    module = import_quickly(f"transformers.models.{folder}.modeling_{folder}")
    model_class = getattr(module, architecture)
    if not getattr(model_class, "_supports_attention_backend", False):
        raise UsageError(
            f"{architecture} does not use transformers' attention interface and cannot be split into layers"
        )
    return model_class
