"""Times as people write and read them."""

import re
from datetime import UTC, datetime

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DAYS = 90


def seconds(flag: str, text: str) -> float:
    """30m -> 1800. A number without a unit is refused: it could be anything. raises: UsageError"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    value = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not 0 < value <= MAX_DAYS * _UNITS_S["d"]:
        from shoal.swarm.errors import UsageError

        raise UsageError(f"{flag} takes a time such as 90s, 30m, 24h or 7d, at most {MAX_DAYS}d, not {text!r}")
    return value


def moment(unix_s: float) -> str:
    """2026-11-23 23:05:22 CET: local, and it says so."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
