"""Is a ledger what it claims to be: every signature, every chain, and the sum of all credit."""

from collections.abc import Callable
from dataclasses import dataclass

from . import entry as entries
from .audit_case import OF_SESSION, examined
from .bodies import Verdict
from .chain import Accepted, Chain, judge
from .store import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """author, seq: of the entry that is wrong; without them it is about the whole"""

    text: str
    author: bytes = b""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Inspection:
    entries: int
    peers: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Cases:
    """verdicts: on work in sessions, of anybody; checked: whose evidence is at hand and bears them out"""

    verdicts: int
    checked: int
    findings: tuple[Finding, ...]


def cases(store: Store, kept: Callable[[bytes], bytes | None]) -> Cases:
    """Look at the evidence of all verdicts on work in sessions. kept: an encoded case by its hash, as far as it is here

    A case that others keep is not looked for; it can be asked of whoever wrote the verdict.
    """
    verdicts, checked = 0, 0
    findings: list[Finding] = []
    for stored in store.all():
        entry = stored.entry
        if not isinstance(entry.body, Verdict) or entry.body.kind != OF_SESSION:
            continue
        verdicts += 1
        data = kept(entry.body.evidence)
        if data is None:
            continue
        problem = examined(data, entry.body).problem
        checked += not problem
        if problem:
            findings.append(Finding(f"its evidence does not bear it out: {problem}", entry.author, entry.seq))
    return Cases(verdicts, checked, tuple(findings))


def inspect(store: Store) -> Inspection:
    """Judge all entries again, from the first, as if they came today."""
    findings: list[Finding] = []
    chains: dict[bytes, Chain] = {}
    heads: dict[bytes, bytes] = {}
    count = 0
    for stored in store.all():
        entry = stored.entry
        count += 1
        chain = chains.get(entry.author) or Chain(entry.author)
        predecessor = chains.get(heads.get(entry.prev, b""))
        verdict = judge(entry, chain, None, predecessor, stored.received)
        if isinstance(verdict, Accepted):
            chains[entry.author] = verdict.chain
            heads[verdict.chain.head] = entry.author
        else:
            reason = getattr(verdict, "reason", "forked")
            findings.append(Finding(f"refused: {reason}", entry.author, entry.seq))
            chains[entry.author] = Chain(entry.author, entry.seq + 1, entries.hash_of(entry), entry.time)
    if store.drifted:
        findings.append(Finding("the balances on the disk are not those that the entries give"))
    if store.balances.imbalance():
        findings.append(Finding(f"{store.balances.imbalance()} credits came from nowhere"))
    return Inspection(count, len(chains), tuple(findings))
