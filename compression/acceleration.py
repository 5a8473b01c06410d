"""Whether the compiled loops can be used: where numba is installed they give the same bytes as numpy, faster."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar, cast

# "numpy": no check for a divisor of zero, which would keep a loop from becoming vector code.
OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
P = ParamSpec("P")
R = TypeVar("R")


@cache
def numba_is_installed() -> bool:
    return find_spec("numba") is not None


def wants_numba(accelerate: bool | None) -> bool:
    """accelerate: None takes numba where it is; True insists (an ImportError follows where it is not)."""
    return numba_is_installed() if accelerate is None else accelerate


def compiled(loop: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call and keep the machine code beside the module, or in the user's cache folder."""
    import numba

    try:
        return cast("Callable[P, R]", numba.njit(cache=True, **OPTIONS)(loop))
    except RuntimeError:  # no folder to keep machine code in
        return cast("Callable[P, R]", numba.njit(**OPTIONS)(loop))
