"""One peer's view of the others, from its entries: who was served by whom, what audits found, who forked."""

from collections import defaultdict
from collections.abc import Mapping

from shoal.swarm import peer_id
from shoal.swarm.identifiers import PeerId

from . import entry as entries
from . import payword
from .audit_case import FALSE, OF_SESSION, SOUND
from .bodies import TICK_TOKENS, Close, Open, Verdict
from .standing import FALSE_WORK, Standings
from .store import Store
from .trust import AuditRecord

REMEMBERED_S = 30 * 86_400  # a server that was convicted once may have been repaired since


def view_of(me: bytes, store: Store, now: int | None = None, avoided: Mapping[bytes, str] | None = None) -> Standings:
    """me: the own key; now: unix seconds, None counts verdicts of any age
    avoided: keys that own audits speak against, and why

    An edge weighs the positions for which a client has handed out words, whether it had credit for them or not: that it
    got them is what it says of the server. Audits are the own ones and the judges': what others found has to be
    computed again before it is believed, and is an own one then. Until then it weighs as its author is trusted.
    """
    owner = store.balances.owner
    opened: dict[bytes, tuple[bytes, Open]] = {}
    receipts: defaultdict[PeerId, defaultdict[PeerId, int]] = defaultdict(lambda: defaultdict(int))
    found: defaultdict[bytes, list[int]] = defaultdict(lambda: [0, 0])
    out = {_name(owner(key)): why for key, why in (avoided or {}).items()}
    accused: defaultdict[PeerId, set[PeerId]] = defaultdict(set)
    for stored in store.all():
        author, body = stored.entry.author, stored.entry.body
        match body:
            case Open():
                opened[entries.hash_of(stored.entry)] = author, body
            case Close(of, ticks, word):
                client, terms = opened.get(of, (author, None))
                if terms is None or owner(terms.server) != owner(author) or owner(client) == owner(author):
                    continue
                if payword.pays(word, terms.root, ticks, terms.most_ticks):
                    receipts[_name(owner(client))][_name(owner(author))] += ticks * TICK_TOKENS
                    del opened[of]
            case Verdict(subject, kind, _, outcome, _) if outcome in (SOUND, FALSE):
                if owner(subject) == owner(author):
                    continue
                recent = kind == OF_SESSION and (now is None or now - stored.at < REMEMBERED_S)
                if author == me:
                    found[owner(subject)][outcome] += 1
                if outcome == FALSE and recent and (author == me or author in store.judges):
                    out[_name(owner(subject))] = FALSE_WORK
                elif outcome == FALSE and recent:
                    accused[_name(owner(subject))].add(_name(owner(author)))
            case _:
                pass
    audits = {_name(key): AuditRecord(counts[SOUND], counts[FALSE]) for key, counts in found.items()}
    forked = [_name(key) for key, account in store.balances.accounts.items() if account.forked]
    accusers = {name: frozenset(by) for name, by in accused.items()}
    return Standings.seen_by(_name(owner(me)), receipts, audits, forked, out, accusers)


def _name(key: bytes) -> PeerId:
    return peer_id.from_public_key(key)
