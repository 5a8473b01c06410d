"""`shoal doctor`: is this machine fit to run a node?"""

import dataclasses

import typer

from .flags import HomeFlag, JsonFlag
from .output import Output


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: shoal doctor --json")(doctor)


def doctor(home: HomeFlag = None, json: JsonFlag = False) -> None:
    """Check Python, torch, memory, disk, the home folder, the network daemon, ports and the model hub.

    Exit code 0 when nothing failed; warnings do not count.
    """
    from functools import partial

    from shoal.swarm.home import Home

    from . import machine_checks, network_checks
    from .check import Check, made, worst

    output = Output(json)
    place = Home.find(home)
    checks: dict[str, Check] = {
        "python": machine_checks.python,
        "torch": machine_checks.torch,
        "memory": machine_checks.memory,
        "disk": partial(machine_checks.disk, place),
        "home": partial(machine_checks.home_folder, place),
        "identity": partial(machine_checks.identity, place),
        "swarm": partial(machine_checks.swarm, place),
        "settings": partial(machine_checks.settings, place),
        "p2pd": network_checks.daemon,
        "ports": partial(network_checks.ports, place),
        "node": partial(network_checks.node, place),
        "hub": network_checks.hub,
    }
    findings = []
    for name, check in checks.items():
        finding = made(name, check)
        findings.append(finding)
        output.event("check", **dataclasses.asdict(finding))
        advice = f"; {finding.advice}" if finding.advice else ""
        output.line(f"{finding.state:5} {finding.name:9} {finding.detail}{advice}")
    state = worst(findings)
    output.event("doctor", state=state)
    output.line({"ok": "All is well.", "warn": "Usable; see the warnings.", "fail": "Something needs mending."}[state])
    if state == "fail":
        raise typer.Exit(1)
