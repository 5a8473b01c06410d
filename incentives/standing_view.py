"""One peer's view of the others, from its entries: who was served by whom, what audits found, who forked."""

from collections import defaultdict

from shoal.swarm import peer_id
from shoal.swarm.identifiers import PeerId

from . import entry as entries
from . import payword
from .bodies import Close, Open, Verdict
from .standing import Standings
from .store import Store
from .trust import AuditRecord

SOUND, FALSE = 0, 1  # outcomes of a verdict


def view_of(me: bytes, store: Store) -> Standings:
    """me: the own key

    An edge weighs the positions for which a client has handed out words, whether it had credit for them or not: that it
    got them is what it says of the server. Audits are the own ones: what others found has to be computed again before
    it is believed, and is an own one then.
    """
    owner = store.balances.owner
    opened: dict[bytes, tuple[bytes, Open]] = {}
    receipts: defaultdict[PeerId, defaultdict[PeerId, int]] = defaultdict(lambda: defaultdict(int))
    found: defaultdict[bytes, list[int]] = defaultdict(lambda: [0, 0])
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
                    receipts[_name(owner(client))][_name(owner(author))] += ticks * terms.tick_tokens
                    del opened[of]
            case Verdict(subject, _, _, outcome, _) if author == me and outcome in (SOUND, FALSE):
                found[owner(subject)][outcome] += 1
            case _:
                pass
    audits = {_name(key): AuditRecord(counts[SOUND], counts[FALSE]) for key, counts in found.items()}
    forked = [_name(key) for key, account in store.balances.accounts.items() if account.forked]
    return Standings.seen_by(_name(owner(me)), receipts, audits, forked)


def _name(key: bytes) -> PeerId:
    return peer_id.from_public_key(key)
