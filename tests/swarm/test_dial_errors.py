"""Errors of a dial, as a user reads them."""

import pytest

from shoal.swarm.transports.dial_errors import MOST_CHARACTERS, plain_words

DIAL = """P2PHandlerError: failed to dial 12D3KooWQ: all dials failed
  * [/ip4/10.0.0.3/tcp/4001] dial tcp4 0.0.0.0:37103->10.0.0.3:4001: connect: connection refused
  * [/ip6/fe80::1/tcp/4001] dial tcp6 [fe80::1]:4001: i/o timeout"""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (DIAL, "refuses connections"),
        ("failed to dial 12D3KooWQ: dial backoff", "a moment ago"),
        ("failed to dial: all dials failed * [/ip4/10.0.0.3/tcp/1] context deadline exceeded", "does not answer"),
        ("failed to dial 12D3KooWQ: no addresses", "no address of it is known"),
        ("failed to dial: no good addresses", "none of its addresses can be dialled"),
        ("failed to dial: all dials failed * [/ip4/1.2.3.4/tcp/9] odd", "cannot be reached at any"),
        ("stream reset", "stream reset"),
    ],
)
def test_a_failed_dial_is_told_in_a_few_words_without_addresses(said: str, words: str) -> None:
    told = plain_words(said)
    assert words in told
    assert len(told) < 80
    assert not any(mark in told for mark in ("/ip4", "/ip6", "dial tcp", "\n", "12D3"))


def test_what_nobody_foresaw_is_one_line_of_bounded_length() -> None:
    told = plain_words("word\n " * 400)
    assert "\n" not in told
    assert len(told) == MOST_CHARACTERS
