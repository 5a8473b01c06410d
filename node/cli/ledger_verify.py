"""`shoal ledger verify`: every signature, every chain, every balance, from the first entry on."""

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output


def register(group: typer.Typer) -> None:
    group.command(epilog="Example: shoal ledger verify && echo sound")(verify)


def verify(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Check all entries again, and that the balances follow from them; exit code 1 when something is wrong."""
    from shoal.incentives.entry import peer_of
    from shoal.incentives.inspection import cases, inspect

    from .ledger_file import kept_cases, opened_ledger

    output = Output(json)
    with opened_ledger(home) as (store, _):
        found = inspect(store)
        with kept_cases(home) as kept:
            seen = cases(store, kept)
    findings = (*found.findings, *seen.findings)
    for finding in findings:
        author = peer_of(finding.author) if finding.author else None
        output.event("finding", text=finding.text, author=author, seq=finding.seq if author else None)
        output.line(f"entry {finding.seq} of {author}: {finding.text}" if author else finding.text)
    output.event(
        "verified",
        entries=found.entries,
        peers=found.peers,
        verdicts=seen.verdicts,
        with_evidence=seen.checked,
        sound=not findings,
    )
    output.line(f"{found.entries} entries of {found.peers} peers, {len(findings)} wrong")
    if seen.verdicts:
        borne = f"the evidence of {seen.checked} is kept here and bears them out"
        output.line(f"{seen.verdicts} verdicts on work in sessions; {borne}")
    if findings:
        raise typer.Exit(1)
