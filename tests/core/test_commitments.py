from __future__ import annotations

import array
import dataclasses
import hashlib
import hmac
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import commitments as c
from ledger.core.errors import CorruptError, InvalidError

SALT = bytes(range(32))
token_lists = st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1]), max_size=300)
salts = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=600)
SIZES = [0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 640, 641]
KNOWN = {
    "tokens": "a4d22e9d9f3eb4448f8ab723e3f8bdade18e6c2af1829d6797bef422a992571b",
    "no tokens": "e1cd27ebb111669a7e3263e198f8971c72a61615f7e9327ff5a7b5bdc2c3267a",
    "text": "e00675df23af6e6e9c823fb0224983d61906d59302df53d6e8f96b729c3a2730",
    "request": "86ff65c101de95ece902e18159cd1161eb58ce7130a625c45a6616224f8f4c25",
    "salt": "bf4a7caa37b40f6fbb2f47ee10831d8371ff23df32f02be32053e8c25bad3af9",
}


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def tree(leaves):
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return sha256()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\x01", tree(leaves[:k]), tree(leaves[k:]))


def digest_by_hand(kind, count, content, salt):
    """The formula of the module's text, written once more with nothing but hashlib."""
    chunks = [content[at : at + 256] for at in range(0, len(content), 256)]
    stream = hashlib.shake_256(b"tallystick chunk v1" + salt).digest(32 * len(chunks))
    leaves = [sha256(b"\x00", stream[32 * i : 32 * i + 32], chunk) for i, chunk in enumerate(chunks)]
    return sha256(b"tallystick commitment v1", kind, count.to_bytes(8, "little"), tree(leaves))


@given(token_lists, salts)
def test_token_commitments_are_the_stated_formula(tokens, salt):
    content = b"".join(token.to_bytes(4, "little") for token in tokens)
    assert c.commit_tokens(tokens, salt) == digest_by_hand(b"t", len(tokens), content, salt)


@given(texts, salts)
def test_text_commitments_are_the_stated_formula(text, salt):
    content = text.encode()
    assert c.commit_text(text, salt) == digest_by_hand(b"x", len(content), content, salt)


def test_known_digests_do_not_change():
    # Whoever changes the format must notice: openings made before would no longer match.
    assert c.commit_tokens(range(200), SALT).hex() == KNOWN["tokens"]
    assert c.commit_tokens([], SALT).hex() == KNOWN["no tokens"]
    assert c.commit_text("Wie heißt die Hauptstadt?", SALT).hex() == KNOWN["text"]
    assert c.commit_request("req-1", SALT).hex() == KNOWN["request"]
    key = c.tenant_key(b"i" * 32, b"t" * 32)
    assert c.record_salt(key, "0199c7d1-0000-7000-8000-000000000000", "input").hex() == KNOWN["salt"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("of", ["tokens", "text"])
def test_openings_whole_and_by_chunk(of, size):
    content = c.token_bytes(range(size)) if of == "tokens" else b"x" * size
    digest = c.commit_tokens(range(size), SALT) if of == "tokens" else c.commit_text("x" * size, SALT)
    opening = c.Opening(of, SALT, content)
    c.verify_opening(digest, opening)
    chunks = -(-len(content) // 256)
    shown = [c.open_chunk(opening, index) for index in range(chunks)]
    for each in shown:
        c.verify_chunk(digest, each)
        assert each.count == size
    assert b"".join(each.content for each in shown) == content
    for index in (-1, chunks):
        with pytest.raises(InvalidError):
            c.open_chunk(opening, index)


def test_an_opened_chunk_shows_no_other_salt():
    opening = c.Opening("tokens", SALT, c.token_bytes(range(200)))
    shown = [c.open_chunk(opening, index) for index in range(4)]
    assert len({each.salt for each in shown}) == 4
    assert SALT not in {each.salt for each in shown}
    for each in shown:
        others = [other.salt for other in shown if other is not each]
        held = each.salt + each.content + b"".join(each.path)
        assert not any(salt in held for salt in others)


def test_any_changed_byte_of_an_opening_is_refused():
    digest = c.commit_tokens(range(70), SALT)
    opening = c.Opening("tokens", SALT, c.token_bytes(range(70)))
    for name in ("salt", "content"):
        value = getattr(opening, name)
        for at in range(len(value)):
            changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            with pytest.raises(CorruptError):
                c.verify_opening(digest, dataclasses.replace(opening, **{name: changed}))
    for at in range(32):
        with pytest.raises(CorruptError):
            c.verify_opening(digest[:at] + bytes([digest[at] ^ 1]) + digest[at + 1 :], opening)


def test_any_changed_byte_of_an_opened_chunk_is_refused():
    digest = c.commit_tokens(range(200), SALT)
    shown = c.open_chunk(c.Opening("tokens", SALT, c.token_bytes(range(200))), 3)
    for name in ("salt", "content"):
        value = getattr(shown, name)
        for at in range(len(value)):
            changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            with pytest.raises(CorruptError):
                c.verify_chunk(digest, dataclasses.replace(shown, **{name: changed}))
    for level, sibling in enumerate(shown.path):
        for at in range(32):
            changed = sibling[:at] + bytes([sibling[at] ^ 1]) + sibling[at + 1 :]
            path = (*shown.path[:level], changed, *shown.path[level + 1 :])
            with pytest.raises(CorruptError):
                c.verify_chunk(digest, dataclasses.replace(shown, path=path))


@pytest.mark.parametrize(
    "changes",
    [
        {"of": "text"},
        {"of": "bytes"},
        {"of": ""},
        {"count": 199},
        {"count": 201},
        {"count": 0},
        {"count": -1},
        {"count": 2**62},
        {"count": 2**80},
        {"index": 0},
        {"index": 2},
        {"index": 4},
        {"index": -1},
        {"index": 2**70},
        {"salt": SALT[:-1]},
        {"salt": b""},
        {"content": b""},
        {"content": b"x" * 256},
        {"path": ()},
        {"path": (SALT,) * 64},
        {"path": (SALT,) * 65},
        {"path": (b"",) * 2},
    ],
    ids=str,
)
def test_other_chunk_openings_are_refused(changes):
    digest = c.commit_tokens(range(200), SALT)
    shown = c.open_chunk(c.Opening("tokens", SALT, c.token_bytes(range(200))), 3)
    c.verify_chunk(digest, shown)
    with pytest.raises((InvalidError, CorruptError)):
        c.verify_chunk(digest, dataclasses.replace(shown, **changes))


@pytest.mark.parametrize(
    "opening",
    [
        c.Opening("tokens", SALT, b"abc"),
        c.Opening("bytes", SALT, b"abcd"),
        c.Opening("text", SALT[:-1], b"abcd"),
        c.Opening("text", b"", b"abcd"),
    ],
)
def test_openings_that_cannot_be_any(opening):
    with pytest.raises(InvalidError):
        c.verify_opening(bytes(32), opening)


def test_tokens_and_text_of_the_same_bytes_differ():
    assert c.commit_tokens([0x64636261], SALT) != c.commit_text("abcd", SALT)


@given(token_lists, token_lists, salts, salts)
def test_equal_only_for_equal_tokens_and_salt(one, other, salt, salt_2):
    same = (one, salt) == (other, salt_2) or not (one or other)
    assert (c.commit_tokens(one, salt) == c.commit_tokens(other, salt_2)) == same


def test_what_counts_as_tokens():
    expected = c.commit_tokens([1, 2, 3], SALT)
    for tokens in ((1, 2, 3), range(1, 4), array.array("i", [1, 2, 3]), array.array("Q", [1, 2, 3])):
        assert c.commit_tokens(tokens, SALT) == expected
    for tokens in (b"\x01\x02\x03", bytearray([1, 2, 3]), memoryview(b"\x01\x02\x03")):
        assert c.commit_tokens(tokens, SALT) == expected  # ids below 256, not the memory of an array


@pytest.mark.parametrize("tokens", [[-1], [2**32], [1.0], ["1"], "abc", [None], [2**70], [b"a"]], ids=repr)
def test_what_does_not(tokens):
    with pytest.raises(InvalidError) as caught:
        c.commit_tokens(tokens, SALT)
    assert caught.value.code == "bad-token"


def test_text_that_is_not_unicode_is_invalid_not_a_crash():
    for commit in (c.commit_text, c.commit_request):
        with pytest.raises(InvalidError) as caught:
            commit("\ud83d", SALT)
        assert caught.value.code == "bad-text"


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_salt_has_32_bytes(length):
    with pytest.raises(InvalidError):
        c.commit_tokens([1], bytes(length))


@given(st.binary(min_size=32, max_size=80), st.binary(min_size=32, max_size=80), st.text(max_size=40))
def test_salts_are_hkdf_sha256(issuer_secret, tenant_secret, purpose):
    purpose = purpose.encode("utf-8", "ignore").decode()
    record_id = "0199c7d1-0000-7000-8000-000000000000"
    info = b"tallystick salt v1" + record_id.encode() + b"/" + purpose.encode()
    whole = HKDF(hashes.SHA256(), 32, salt=issuer_secret, info=info).derive(tenant_secret)
    key = c.tenant_key(issuer_secret, tenant_secret)
    assert key == HKDF.extract(hashes.SHA256(), issuer_secret, tenant_secret)
    assert (
        c.record_salt(key, record_id, purpose) == HKDFExpand(hashes.SHA256(), 32, info).derive(key) == whole
    )


def test_secrets_have_at_least_32_bytes():
    for pair in ((b"x" * 31, b"y" * 32), (b"x" * 32, b"y" * 31), (b"", b"y" * 32)):
        with pytest.raises(InvalidError):
            c.tenant_key(*pair)


def test_salts_differ_by_tenant_record_and_purpose():
    found = {
        c.record_salt(c.tenant_key(b"i" * 32, tenant * 32), record, purpose)
        for tenant in (b"a", b"b")
        for record in ("r1", "r2")
        for purpose in ("input", "output", "request")
    }
    assert len(found) == 12


def test_request_commitments_are_hmac():
    assert c.commit_request("req-é", SALT) == hmac.digest(SALT, "req-é".encode(), "sha256")


@pytest.mark.parametrize(
    "tokens", [[], [0], list(range(200)), (7,) * 5000, array.array("I", [1, 2]), range(70), [2**32 - 1]]
)
def test_the_commitment_of_a_record_is_that_under_its_salt(tokens):
    given = c.commit_tokens(tokens, c.record_salt(SALT, "id", "input")).hex()
    made = c.commit_tokens(tokens, c.record_salt(SALT, "id", "output")).hex()
    request = c.commit_request("req-é", c.record_salt(SALT, "id", "request")).hex()
    assert c.commit_record(SALT, "id", c.pack_ids(tokens, None), None) == (given, None, None)
    assert c.commit_record(SALT, "id", c.pack_ids(None, tokens), "req-é") == (None, made, request)
    assert c.commit_record(SALT, "id", c.pack_ids(tokens, tokens), "req-é") == (given, made, request)


def test_a_record_without_content_commits_to_none():
    assert c.pack_ids(None, None) is None
    assert c.commit_record(SALT, "id", None, None) == (None, None, None)


@pytest.mark.parametrize("size", [63, 64, 65, 300])
def test_a_record_of_any_id_commits_alike(size):
    expected = c.commit_tokens([1], c.record_salt(SALT, "i" * size, "input")).hex()
    assert c.commit_record(SALT, "i" * size, c.pack_ids([1], None), None) == (expected, None, None)


def test_a_record_commits_to_no_request_id_beyond_unicode():
    with pytest.raises(InvalidError, match="surrogate"):
        c.commit_record(SALT, "id", None, "\ud800")


@pytest.mark.skipif(c._native is None, reason="the native part is not here")
@given(st.binary(max_size=64))
def test_only_a_whole_pair_is_taken_apart(packed):
    counts = struct.unpack_from("<qq", packed) if len(packed) >= 16 else (-2, -2)
    whole = min(counts) >= -1 and len(packed) == 16 + 4 * sum(max(0, each) for each in counts)
    assert (c._native.commit_record(SALT, "id", packed, None) is not None) is whole


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5]])
def test_a_record_commits_to_no_token_beyond_32_bits(tokens):
    with pytest.raises(InvalidError, match="32 bits"):
        c.token_bytes(tokens)
    assert c.pack_pair(tokens, [1]) is None


packed_kinds = token_lists | token_lists.map(tuple) | st.none()


@pytest.mark.skipif(c.pack_pair([1], [2]) is None, reason="the native part is not here")
@given(packed_kinds, packed_kinds)
def test_a_pair_of_ids_is_packed_and_unpacked(first, second):
    packed = c.pack_pair(first, second)
    if first is None and second is None:
        assert packed is None
    else:
        expected = tuple(None if each is None else c.token_bytes(each) for each in (first, second))
        assert c.unpack_pair(packed) == expected
        assert c.pack_ids(first, second) == packed


@pytest.mark.parametrize("tokens", ["text", b"bytes", range(3), {1}, [True], [1.0], array.array("d", [1.0])])
def test_what_is_no_list_of_integers_is_not_packed(tokens):
    assert c.pack_pair(tokens, [1]) is None
    assert c.pack_pair([1], tokens) is None
