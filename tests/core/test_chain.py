from __future__ import annotations

import pytest
from msgspec import UNSET

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.chain import ChainHead, next_head
from ledger.core.errors import RefusedError
from tests.build import Issuer


def chain(length):
    issuer = Issuer()
    return [issuer.heartbeat(dropped=n) for n in range(length)]


def walk(statements):
    head = ChainHead()
    for each in statements:
        head = next_head(head, each)
    return head


def test_a_chain_without_gaps_is_followed_to_its_end():
    statements = chain(6)
    assert walk(statements) == ChainHead(6, statements[-1].leaf_hash)
    assert walk([]) == ChainHead(0, None)


def test_leaving_out_any_statement_shows():
    statements = chain(6)
    for gone in range(5):
        with pytest.raises(RefusedError) as caught:
            walk(statements[:gone] + statements[gone + 1 :])
        assert caught.value.code == "seq-gap"


def test_swapping_any_two_shows():
    statements = chain(5)
    for at in range(4):
        swapped = [*statements[:at], statements[at + 1], statements[at], *statements[at + 2 :]]
        with pytest.raises(RefusedError) as caught:
            walk(swapped)
        assert caught.value.code == "seq-gap"


def test_repeating_any_shows():
    statements = chain(4)
    for again in range(4):
        with pytest.raises(RefusedError) as caught:
            walk([*statements, statements[again]])
        assert caught.value.code == "seq-reused"


def test_a_fork_shows_at_once_or_at_the_next_statement():
    issuer = Issuer()
    first = issuer.heartbeat()
    kept = issuer.heartbeat(dropped=1)
    fork = Issuer(name=issuer.name, key=issuer.key, seq=1, prev=first.leaf_hash)
    other = fork.heartbeat(dropped=2)
    after_other = fork.heartbeat(dropped=3)
    with pytest.raises(RefusedError) as caught:
        walk([first, kept, other])
    assert caught.value.code == "seq-reused"
    with pytest.raises(RefusedError) as caught:
        walk([first, kept, after_other])
    assert caught.value.code == "wrong-prev"


def test_the_first_statement_follows_nothing():
    late = Issuer(seq=1, prev=b"x" * 32).heartbeat()
    with pytest.raises(RefusedError) as caught:
        walk([late])
    assert caught.value.code == "seq-gap"
    with pytest.raises(RefusedError) as caught:
        next_head(ChainHead(1, b"y" * 32), late)
    assert caught.value.code == "wrong-prev"
    assert late.payload.prev is not UNSET


def test_errors_name_the_issuer_and_what_comes_next():
    statements = chain(3)
    with pytest.raises(
        RefusedError, match=r"gpu-7\.example\.com/llama sent seq 2, but 1 comes next"
    ) as caught:
        next_head(next_head(ChainHead(), statements[0]), statements[2], where="leaf 9")
    assert caught.value.where == "leaf 9"


def test_the_last_seq_there_can_be():
    last = Issuer(seq=MAX_SAFE_INTEGER, prev=b"x" * 32).heartbeat()
    assert next_head(ChainHead(MAX_SAFE_INTEGER, b"x" * 32), last).next_seq == 2**53
