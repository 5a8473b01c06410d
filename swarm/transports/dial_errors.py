"""What p2pd says when a peer cannot be reached, in a few words: its own list every address and every attempt."""

MOST_CHARACTERS = 200
# The first that occurs. A dial that failed at several addresses for several reasons is told by the plainest of them.
_MEANINGS = (
    ("dial backoff", "could not be reached a moment ago"),
    ("connection refused", "refuses connections; it is not running there, or behind a firewall"),
    ("peer id mismatch", "another peer answers at its address"),
    ("i/o timeout", "does not answer at any of its addresses"),
    ("deadline exceeded", "does not answer at any of its addresses"),
    ("no route to host", "there is no way to its addresses from here"),
    ("network is unreachable", "there is no way to its addresses from here"),
    ("no good addresses", "none of its addresses can be dialled from here"),
    ("no addresses", "no address of it is known"),
    ("all dials failed", "cannot be reached at any of its addresses"),
    ("failed to dial", "cannot be reached"),
    ("failed to find any peer", "no address of it is known"),
    ("routing: not found", "no address of it is known"),
)


def plain_words(said: str) -> str:
    """One line of at most MOST_CHARACTERS."""
    text = " ".join(said.split())
    lowered = text.lower()
    for sign, meaning in _MEANINGS:
        if sign in lowered:
            return meaning
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
