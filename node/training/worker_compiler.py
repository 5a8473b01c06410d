"""torch's optimisers without torch's compiler: each of them imports it (4 s of processor time) only to say that it is
not used. While they run, a stand-in says so instead.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"
_lock = threading.Lock()


class _NoCompiler(ModuleType):
    def __init__(self) -> None:
        super().__init__(_NAME)
        self.__path__ = []

    @staticmethod
    def graph_break(*_: object, **__: object) -> None:
        return

    @staticmethod
    def disable(function: Any = None, *_: object, **__: object) -> Any:  # noqa: ANN401
        return function if callable(function) else lambda decorated: decorated


@contextmanager
def uncompiled() -> Iterator[None]:
    """Around calls of torch.optim. Does nothing in a process that has imported the compiler anyway."""
    with _lock:
        if _NAME in sys.modules:
            yield
            return
        stand_in = _NoCompiler()
        sys.modules[_NAME] = torch._dynamo = stand_in  # noqa: SLF001
        try:
            yield
        finally:
            if sys.modules.get(_NAME) is stand_in:
                del sys.modules[_NAME]
            if torch.__dict__.get("_dynamo") is stand_in:
                del torch._dynamo  # noqa: SLF001
