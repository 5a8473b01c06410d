"""The way that an answer took, as text: peers, layers, milliseconds per hop, failovers."""

from shoal import Result

from .table import table_lines


def route_lines(result: Result) -> list[str]:
    route, usage = result.route, result.usage
    rate = usage.completion_tokens / route.total_s if route.total_s else 0.0
    lines = [
        f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out ({result.finish_reason}); first after "
        f"{route.first_token_s:.2f} s, all after {route.total_s:.2f} s, {rate:.1f} tokens/s; seed {result.seed}"
    ]
    rows = [[hop.name, hop.peer[-8:], hop.layers, hop.tokens, hop.compute_ms, hop.queue_ms] for hop in route.hops]
    lines += table_lines(["hop", "peer", "layers", "positions", "compute ms", "queue ms"], rows)
    for hop in route.hops:
        if (hop.stored or hop.fetched) and not route.prefills:
            lines.append(
                f"prefix: {hop.name} ({hop.layers}) did not compute {hop.stored + hop.fetched} positions: "
                f"{hop.stored} lay there, {hop.fetched} came from other peers"
            )
    for prefill in route.prefills:
        who = ", ".join(
            f"{n} ({p[-8:]}) {layers}"
            for n, p, layers in zip(prefill.names, prefill.peers, prefill.layers, strict=False)
        )
        trouble = f"; {prefill.trouble}" if prefill.trouble else ""
        lines.append(f"prefill: {prefill.positions} of {prefill.asked} positions were computed by {who}{trouble}")
    for failover in route.failovers:
        others = ", ".join(peer[-8:] for peer in failover.replaced_by) or "nobody"
        kind = "moved" if failover.planned else "failover"
        cache = f" with the cache of {failover.loaded} positions" if failover.loaded else ""
        lines.append(
            f"{kind}: {failover.peer[-8:]} ({failover.layers}) {failover.reason}; "
            f"{others} took over{cache} after {failover.pause_s:.2f} s"
        )
    return lines
