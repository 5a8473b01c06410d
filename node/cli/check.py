"""What one check of `shoal doctor` found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    state: State
    detail: str
    advice: str = ""  # what to do, when it is not ok


Check = Callable[[], Finding]


def made(name: str, check: Check) -> Finding:
    """A check that itself breaks is a finding too."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001  whatever is broken here is what the user wants to know
        return Finding(name, "fail", f"{type(error).__name__}: {error}", "please report this line")


def worst(findings: Iterable[Finding]) -> State:
    states = {finding.state for finding in findings}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"
