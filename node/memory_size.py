"""How a user writes an amount of memory."""

import re

from shoal.swarm.errors import UsageError

DISK = "disk size (--kv-disk)"
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([a-z%]*)\s*$", re.IGNORECASE)
_UNITS = {
    "": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip


def parse_size(text: str, free: int, what: str = "memory size") -> int:
    """`8GB`, `500MiB`, `80%` (of what is free), a bare number of bytes. what: how an error calls it

    raises: UsageError
    """
    match = _SIZE.match(text)
    unit = match[2].lower() if match else ""
    if not match or (unit != "%" and unit not in _UNITS):
        raise UsageError(f"cannot read the {what} {text!r}: write 8GB, 500MiB or 80%")
    number = float(match[1])
    if unit == "%":
        if number > 100:
            raise UsageError(f"the {what} {text!r} is more than all there is")
        size = int(free * number / 100)
    else:
        size = int(number * _UNITS[unit])
    if size < 1:
        raise UsageError(f"a {what} of {text!r} leaves room for nothing")
    return size
