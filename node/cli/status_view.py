"""The text of `shoal status`: node, swarm, layer map, sessions."""

from collections.abc import Mapping
from typing import Any

from .layer_map import draw, maps_of
from .table import table_lines

_REACHABLE = {True: "reachable from outside", False: "behind a NAT, through relays", None: "not dialled by anybody yet"}
LOOPBACK = "this machine only (loopback)"
MAX_SESSIONS = 8


def status_lines(status: Mapping[str, Any], tokens_per_s: Mapping[str, float] | None = None) -> list[str]:
    """tokens_per_s: by model, when two looks at the node were taken"""
    swarm, network = status["swarm"], status["network"]
    kind = "public" if swarm["public"] else "private"
    role = "you own it" if swarm["mine"] else "you are a member"
    reach = LOOPBACK if network["loopback"] else _REACHABLE[network["reachable"]]
    lines = [
        f"node      {status['name']}  {status['peer']}  (shoal {status['version']}, up {duration(status['uptime_s'])})",
        f"swarm     {swarm['name']} ({kind}; {role})",
        f"network   {counted(network['peers'], 'other peer')}; {reach}",
        f"device    {status['device']}",
    ]
    for model in maps_of(status["peers"]):
        lines += ["", *draw(model)]
    if status["hosted"]:
        lines += ["", *_hosted(status, tokens_per_s)]
    if status.get("moving"):
        lines += ["", _moving(status["moving"])]
    lines += ["", *_sessions(status)]
    return lines


def _hosted(status: Mapping[str, Any], tokens_per_s: Mapping[str, float] | None) -> list[str]:
    heads = ["serving", "layers", "dtype", "step ms", "sessions", "queue", "tokens", "room for tokens"]
    keys = ["name", "layers", "dtype", "step_ms", "sessions", "queue", "tokens", "free_tokens"]
    rows = [[item[key] for key in keys] for item in status["hosted"]]
    if tokens_per_s is not None:
        heads.append("tokens/s")
        for row, item in zip(rows, status["hosted"], strict=True):
            row.append(tokens_per_s.get(item["model"], 0.0))
    return table_lines(heads, rows)


def _moving(move: Mapping[str, Any]) -> str:
    line = f"moving    {move['name']}, from {move['before'] or 'nothing'} to {move['layers']} ({move['reason']})"
    line += f"; {move['stage']}"
    sessions = move["sessions"]
    if sessions and sessions["waiting"]:
        line += f", {counted(sessions['waiting'], 'session')} still here"
    return line


def _sessions(status: Mapping[str, Any]) -> list[str]:
    sessions = status["sessions"]
    if not sessions:
        return ["no sessions pass through this node now"]
    names = {peer["peer"]: peer["name"] for peer in status["peers"]}
    rows = [[s["session"], names.get(s["driver"], s["driver"][-8:]), s["held"]] for s in sessions[:MAX_SESSIONS]]
    lines = table_lines(["session", "asked by", "tokens held"], rows)
    if len(sessions) > MAX_SESSIONS:
        lines.append(f"and {len(sessions) - MAX_SESSIONS} more")
    return lines


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """93784 -> 1 d 2 h; 75 -> 1 min 15 s."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
