"""Give freed memory back to the system after loading."""

import ctypes
import sys


def return_freed_memory() -> None:
    """glibc keeps what was freed between live blocks: after packing a model's weights, as much as a layer or two."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in musl
    if trim is not None:
        trim(0)
