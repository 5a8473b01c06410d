"""Balances as rows of bytes, so that a store can keep them and compare them with what the entries say."""

import msgspec

from .account import Totals
from .balances import Balances, Row

_encoder = msgspec.msgpack.Encoder()


def row(balances: Balances, kind: str, key: bytes) -> bytes | None:
    """The value of one row; None when there is none (any more)."""
    match kind:
        case "account":
            value: object = balances.accounts.get(key)
        case "reservation":
            value = balances.reservations.get(key)
        case "early":
            value = balances.early.get(key)
        case "owner":
            value = balances.owners.get(key)
        case "work":
            value = balances.works.get(key)
        case "credited":
            value = balances.credited.get(key)
        case "totals":
            value = balances.totals if balances.totals != Totals() else None
        case _:
            raise ValueError(kind)
    return None if value is None else _encoder.encode(value)


def rows(balances: Balances) -> dict[Row, bytes]:
    """Everything."""
    keys: list[Row] = [("totals", b"")]
    keys += [("account", key) for key in balances.accounts]
    keys += [("reservation", key) for key in balances.reservations]
    keys += [("early", key) for key in balances.early]
    keys += [("owner", key) for key in balances.owners]
    keys += [("work", key) for key in balances.works]
    keys += [("credited", key) for key in balances.credited]
    return {(kind, key): value for kind, key in keys if (value := row(balances, kind, key)) is not None}
