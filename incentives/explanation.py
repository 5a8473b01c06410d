"""Why a balance is what it is: every entry that moved it, with what it moved, in words that need no glossary."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage

from . import entry as entries
from .audit_case import OF_SESSION
from .balances import OF_TRAINING, Balances, Movement, settles
from .bodies import COMPLAINTS, Ack, AnyBody, Checkpoint, Close, ForkProof, Open, Rotate, Train, Verdict
from .chunk_thanks import is_for_chunks
from .store import Store, Stored

KINDS = {
    Open: "open",
    Close: "close",
    Ack: "ack",
    Train: "train",
    Verdict: "verdict",
    Checkpoint: "checkpoint",
    Rotate: "rotate",
    ForkProof: "fork",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One entry (or the passing of time, without one) and what it did to an account."""

    stored: Stored | None
    movements: tuple[Movement, ...]
    spendable: int  # of the account afterwards
    reserved: int
    waiting: int
    is_of_chunks: bool = False  # an OPEN or CLOSE whose ticks are chunks of a prefix


def steps(store: Store, key: bytes, now: int) -> Iterator[Step]:
    """All entries that the account wrote, that judge its work, settled its sessions or moved something in it; then time
    up to `now`."""
    balances = Balances(store.judges)
    for_chunks = set[bytes]()  # OPENs
    for stored in store.all():
        entry = stored.entry
        if isinstance(entry.body, Open) and is_for_chunks(entry.body):
            for_chunks.add(entries.hash_of(entry))
        settled = _is_settled(balances, stored, key)
        moved = balances.apply(entry.author, entry.body, entries.hash_of(entry), stored.at)
        account = balances.owner(key)
        own = tuple(movement for movement in moved if movement.account == account)
        judged = isinstance(entry.body, Verdict) and balances.owner(entry.body.subject) == account
        if own or settled or judged or balances.owner(entry.author) == account:
            named = entry.body.open if isinstance(entry.body, Close) else entries.hash_of(entry)
            yield replace(_step(stored, own, balances, key), is_of_chunks=named in for_chunks)
    own = tuple(balances.advance(key, now))
    if own:
        yield _step(None, own, balances, key)


def _is_settled(balances: Balances, stored: Stored, key: bytes) -> bool:
    """Before it is applied: whether this is the CLOSE of a session that the account opened."""
    body, author = stored.entry.body, balances.owner(stored.entry.author)
    reservation = balances.reservations.get(body.open) if isinstance(body, Close) else None
    if not isinstance(body, Close) or reservation is None or reservation.client != balances.owner(key):
        return False
    return settles(author, body, reservation)


def _step(stored: Stored | None, movements: tuple[Movement, ...], balances: Balances, key: bytes) -> Step:
    account = balances.account(key)
    return Step(stored, movements, account.spendable, account.reserved, account.waiting)


def kind_of(body: AnyBody) -> str:
    return KINDS[type(body)]


def short(key: bytes) -> str:
    """How a person calls a peer: the end of its PeerID."""
    try:
        return "..." + peer_id.short(entries.peer_of(key))
    except MalformedMessage:
        return key.hex()[:8]


def entry_sentence(body: AnyBody, author: bytes, me: bytes, *, of_chunks: bool = False) -> str:
    """What somebody did by writing this. of_chunks: a CLOSE of an OPEN for chunks of a prefix"""
    who = "This node" if author == me else f"Peer {short(author)}"
    match body:
        case Open():
            whom = "this node" if body.server == me else f"peer {short(body.server)}"
            if is_for_chunks(body):
                price = f"for {body.price} credits each" if body.lane else "as a favour that it owes"
                return f"{who} took {_chunks(body.most_ticks)} from {whom} and did not compute them, {price}"
            tokens = body.most_ticks * body.tick_tokens
            price = f"for {body.price} credits each {body.tick_tokens} tokens" if body.lane else "free of charge"
            return f"{who} opened a session of at most {tokens} tokens at {whom}, {price}"
        case Close() if of_chunks:
            return f"{who} settled what it gave, with proof of {_chunks(body.ticks)}"
        case Close():
            return f"{who} settled a session with proof of {body.ticks * 32} tokens"
        case Ack():
            known = body.complaint < len(COMPLAINTS)
            complaint = COMPLAINTS[body.complaint] if known else f"reason {body.complaint}"
            return f"{who} acknowledged a settlement" + (f" and complained: {complaint}" if body.complaint else "")
        case Train():
            return f"{who} worked on round {body.round} of a training, {body.tokens} tokens"
        case Verdict():
            found = {0: "found it sound", 1: "found it false"}.get(body.outcome, "could not decide")
            whom = "this node" if body.subject == me else f"peer {short(body.subject)}"
            kinds = {OF_SESSION: "had work of a session", OF_TRAINING: "had work for a training"}
            what = kinds.get(body.kind, "had work")
            return f"{who} {what} by {whom} computed again and {found}"
        case Checkpoint():
            return f"{who} put {body.count} entries under one seal, with {len(body.witnesses)} witnesses"
        case Rotate():
            return f"{who} handed its account over to a new key"
        case ForkProof():
            return f"{who} showed that somebody keeps two versions of one chain"


def _chunks(count: int) -> str:
    return f"{count} {'chunk' if count == 1 else 'chunks'} of a cached prefix ({count * CHUNK_TOKENS} tokens)"


def movement_sentence(movement: Movement) -> str:
    """What happened to the account, with the amount."""
    amount, other = abs(movement.amount), short(movement.other) if movement.other else ""
    match movement.what:
        case "reserved":
            return f"{amount} credits were set aside for peer {other}"
        case "released":
            return f"{amount} credits that were set aside for peer {other} came back"
        case "paid":
            return f"{amount} credits were paid to peer {other} for tokens that came"
        case "earned":
            return f"{amount} credits were earned from peer {other}; free in a day and after further work"
        case "burned":
            return f"{amount} credits of that payment were burned, as 5 % of each are"
        case "vested":
            return f"{amount} credits earned a day ago or longer can be spent now"
        case "decayed":
            return f"{amount} credits faded: what is not spent halves every 30 days"
        case "minted":
            return f"{amount} credits were created for work that was checked; they can be spent in a day"
        case "confiscated":
            return f"{amount} credits were taken away and burned"
