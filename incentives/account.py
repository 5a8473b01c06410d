"""What one peer has, and what is set aside of it for an open session. Rows of the store's projection."""

import msgspec

Hour = int  # unix seconds // 3600


class Account(msgspec.Struct, array_like=True):
    """All amounts are credits >= 0."""

    spendable: int = 0
    reserved: int = 0
    vesting: dict[Hour, int] = {}  # income, by the hour from which it may be spent
    hour: Hour = 0  # up to which it has decayed
    contributed: int = 0  # credits earned in a lifetime: does not decay, cannot be spent
    forked: bool = False
    due: dict[Hour, int] = {}  # what has to be `contributed` besides, until income of that hour may be spent

    @property
    def waiting(self) -> int:
        return sum(self.vesting.values())


class Reservation(msgspec.Struct, array_like=True):
    """An OPEN that is not settled."""

    client: bytes  # account
    server: bytes  # account
    root: bytes
    price: int
    most_ticks: int
    amount: int  # set aside for it; less than price * most_ticks when the client had not enough; 0 when released
    release_at: int  # unix seconds
    session: bytes


class Work(msgspec.Struct, array_like=True):
    """A TRAIN that nobody has judged yet, or the judgement of one that has not come."""

    worker: bytes  # account
    at: int  # unix seconds
    tokens: int = 0
    job: bytes = b""  # run and round
    outcome: int | None = None  # of a VERDICT that came first
    credits: int = 0  # of it
    verdict: bytes = b""  # its hash


class Totals(msgspec.Struct, array_like=True):
    """What has left the accounts and come into them; with the accounts it sums to zero."""

    minted: int = 0
    burned: int = 0
    decayed: int = 0
