from __future__ import annotations

import time
import tracemalloc

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import cose
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.keys import ED25519, EDDSA, ES256, ML_DSA_44
from tests.core.examples import ALGORITHMS, key_of

UNDERSTOOD = frozenset({cose.ALG, cose.KID, cose.CONTENT_TYPE})
PAYLOAD = b"This is the content."

# --- CBOR ------------------------------------------------------------------------------------------------

integers = st.integers(-(2**64), 2**64 - 1) | st.sampled_from(
    [0, 23, 24, 255, 256, 65535, 65536, 2**32, -1, -24]
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
labels = integers | text
items = st.recursive(
    integers | text | st.binary(max_size=300) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(labels, inner, max_size=5)
        | inner.map(lambda value: cbor2.CBORTag(18, value))
    ),
    max_leaves=12,
)


def depth(value):
    if isinstance(value, cbor2.CBORTag):
        return 1 + depth(value.value)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(items.filter(lambda value: depth(value) < 10))
def test_what_is_encoded_comes_back(value):
    data = cose.encode_cbor(value)
    assert cose.decode_cbor(data, where="x") == value
    assert cbor2.loads(data) is not None or value is None


@given(st.dictionaries(labels, st.just(0), max_size=8))
def test_maps_are_in_bytewise_order_of_rfc_8949_section_4_2_1(value):
    keys = sorted(cbor2.dumps(key) for key in value)
    assert cose.encode_cbor(value) == bytes([0xA0 + len(keys)]) + b"".join(key + b"\x00" for key in keys)


def test_bytewise_order_is_not_the_order_by_length():
    # RFC 8949 section 4.2.1 gives this very list of keys; 100 stands before -1, although it is longer.
    value = {10: 0, 100: 0, -1: 0, "z": 0, "aa": 0}
    assert cose.encode_cbor(value).hex() == "a50a001864002000617a0062616100"
    by_length = cbor2.dumps(value, canonical=True)
    assert by_length != cose.encode_cbor(value)
    with pytest.raises(InvalidError):
        cose.decode_cbor(by_length, where="x")


REFUSED = {
    "nothing": "",
    "bytes after the end": "0000",
    "break alone": "ff",
    "indefinite array": "9f00ff",
    "indefinite map": "bf0000ff",
    "indefinite bytes": "5f4100ff",
    "indefinite text": "7f6161ff",
    "reserved head 28": "1c",
    "reserved head 30": "1e",
    "long 0": "1800",
    "long 23": "1817",
    "long 255": "1900ff",
    "long 65535": "1a0000ffff",
    "long 2^32-1": "1b00000000ffffffff",
    "long negative": "3800",
    "long string length": "580141",
    "long text length": "78016161",
    "long array length": "980100",
    "long map length": "b8010000",
    "long tag": "d81200",
    "unsorted keys": "a201000000",
    "keys by length, not bytewise": "a22000186400",
    "same key twice": "a200000000",
    "same key twice, apart": "a3000001000000",
    "key that is bytes": "a1410000",
    "key that is null": "a1f600",
    "key that is an array": "a18000",
    "key that is a map": "a1a000",
    "key that is a tag": "a1d20000",
    "true": "f5",
    "false": "f4",
    "true as a key": "a1f500",
    "undefined": "f7",
    "simple value 0": "e0",
    "simple value in two bytes": "f8ff",
    "null in two bytes": "f816",
    "half float": "f90000",
    "float": "fa00000000",
    "double": "fb0000000000000000",
    "NaN": "f97e00",
    "bignum": "c249010000000000000000",
    "negative bignum": "c340",
    "date tag": "c100",
    "tag 17": "d100",
    "shared value": "d81c00",
    "shared reference": "d81d00",
    "set": "d9010280",
    "rational": "d81e820102",
    "text that is not UTF-8": "61ff",
    "text with a lone surrogate": "63eda080",
    "cut head": "19ff",
    "cut string": "43aabb",
    "cut array": "8200",
    "cut map": "a1",
    "cut map after its key": "a100",
    "tag of nothing": "d2",
    "13 deep": "81" * 13 + "00",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_other_spellings_and_types_are_refused(data):
    with pytest.raises(InvalidError) as caught:
        cose.decode_cbor(bytes.fromhex(data), where="here")
    assert (caught.value.code, caught.value.where) == ("malformed-cbor", "here")


@given(st.binary(max_size=40) | items.map(cose.encode_cbor))
def test_whatever_is_accepted_has_one_spelling(data):
    try:
        value = cose.decode_cbor(data, where="x")
    except InvalidError:
        return
    assert cose.encode_cbor(value) == data


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("major", [2, 3, 4, 5])
def test_a_head_that_claims_much_allocates_nothing(major, width):
    head = bytes([major << 5 | 23 + width.bit_length()]) + b"\xff" * width
    tracemalloc.start()
    begun = time.process_time()
    for data in (head, head + b"\x00" * 100, b"\x81" * 9 + head, b"\xd2\x84\x40" + head):
        with pytest.raises(InvalidError):
            cose.decode_cbor(data, where="x")
    seconds = time.process_time() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert seconds < 2


BOMBS = {
    "arrays of arrays": b"\x81" * 500_000,
    "arrays that claim what is there": b"".join(
        b"\x9a" + (1_000_000 - 5 * n).to_bytes(4, "big") for n in range(200_000)
    ),
    "tags": b"\xd2" * 1_000_000,
    "a million zeros": b"\x9a\x00\x0f\xff\x00" + bytes(0xFFF00),
    "a million empty arrays": b"\x9a\x00\x0f\xff\x00" + b"\x80" * 0xFFF00,
    "half a million pairs": b"\xba\x00\x07\xff\x00" + bytes(0xFFE00),
    "one long text that is not UTF-8": b"\x7a\x00\x0f\x00\x00" + b"\xff" * 0xF0000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_cost_neither_time_nor_memory(bomb):
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(InvalidError):
        cose.decode_cbor(bomb, where="x")
    seconds = time.process_time() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2
    assert peak < 4 * len(bomb)


def test_size_is_checked_first():
    with pytest.raises(InvalidError) as caught:
        cose.decode_cbor(bytes(cose.MAX_MESSAGE_BYTES + 1), where="x")
    assert caught.value.code == "too-large"


# --- COSE_Sign1 ------------------------------------------------------------------------------------------


def signed(algorithm="ed25519", header=None, **more):
    return cose.sign1(header or {}, PAYLOAD, key_of(algorithm), **more)


def re_signed(header, algorithm="ed25519", payload=PAYLOAD):
    """A message whose signature covers exactly ``header``, with no alg or kid added."""
    protected = cose.encode_cbor(header) if header else b""
    structure = cbor2.dumps(["Signature1", protected, b"", payload])
    return cose.Sign1(protected, header, {}, payload, key_of(algorithm).sign(structure))


def check(message, algorithm="ed25519", **more):
    cose.verify_sign1(message, key_of(algorithm).public, **({"understood": UNDERSTOOD} | more))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("detached", [False, True])
def test_sign_encode_decode_verify(algorithm, detached):
    message = signed(algorithm, {cose.CONTENT_TYPE: "text/plain"}, detached=detached)
    decoded = cose.decode_sign1(cose.encode_sign1(message))
    assert decoded == message
    check(decoded, algorithm, payload=PAYLOAD if detached else None)
    with pytest.raises(CorruptError):
        check(decoded if detached else cose.Sign1(**vars(decoded) | {"payload": b"?"}), algorithm,
              payload=b"?" if detached else None)  # fmt: skip


@pytest.mark.parametrize("detached", [False, True])
def test_payload_is_attached_or_supplied_never_both_or_neither(detached):
    with pytest.raises(InvalidError) as caught:
        check(signed(detached=detached), payload=None if detached else PAYLOAD)
    assert caught.value.code == "malformed-cose"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("alg", [EDDSA, ED25519, ES256, ML_DSA_44, -35, -37, 0, 5, "EdDSA", None])
def test_alg_must_fit_the_key(algorithm, alg):
    message = re_signed({cose.ALG: alg}, algorithm)
    fits = alg in {"ed25519": (EDDSA, ED25519), "es256": (ES256,), "ml-dsa-44": (ML_DSA_44,)}[algorithm]
    if fits:
        check(message, algorithm)
        return
    with pytest.raises(InvalidError) as caught:
        check(message, algorithm)
    assert caught.value.code == "bad-algorithm"


def test_alg_must_be_there_and_protected():
    with pytest.raises(InvalidError):
        check(re_signed({cose.KID: b"x"}))
    smuggled = re_signed({})
    with pytest.raises(InvalidError):
        check(cose.Sign1(**vars(smuggled) | {"unprotected": {cose.ALG: EDDSA}}))


@pytest.mark.parametrize("crit", [[cose.ALG], [cose.ALG, cose.CONTENT_TYPE]])
def test_understood_critical_parameters_pass(crit):
    check(re_signed({cose.ALG: EDDSA, cose.CRIT: crit, cose.CONTENT_TYPE: "x"}))


@pytest.mark.parametrize(
    "crit",
    [[], [99], [cose.ALG, 99], [cose.KID], ["alg"], [-1], cose.ALG, b"\x01", "1", {}, {1: 1}, [[1]], [None]],
    ids=repr,
)
def test_other_critical_parameters_are_refused(crit):
    with pytest.raises(InvalidError) as caught:
        check(re_signed({cose.ALG: EDDSA, cose.CRIT: crit, 99: 0}))
    assert caught.value.code == "malformed-cose"


def envelope(*parts, tag=18):
    return cbor2.dumps(cbor2.CBORTag(tag, list(parts)))


SHAPES = {
    "no tag": cbor2.dumps([b"", {}, b"", b""]),
    "tag twice": b"\xd2" + envelope(b"", {}, b"", b""),
    "three parts": envelope(b"", {}, b""),
    "five parts": envelope(b"", {}, b"", b"", b""),
    "a map": b"\xd2\xa0",
    "null": b"\xd2\xf6",
    "protected is a map": envelope({}, {}, b"", b""),
    "protected is null": envelope(None, {}, b"", b""),
    "protected is text": envelope("", {}, b"", b""),
    "unprotected is an array": envelope(b"", [], b"", b""),
    "unprotected is null": envelope(b"", None, b"", b""),
    "payload is text": envelope(b"", {}, "", b""),
    "payload is a number": envelope(b"", {}, 0, b""),
    "signature is null": envelope(b"", {}, b"", None),
    "signature is text": envelope(b"", {}, b"", ""),
    "protected holds an array": envelope(b"\x80", {}, b"", b""),
    "protected holds a number": envelope(b"\x01", {}, b"", b""),
    "protected holds bytes": envelope(b"\x41\xa0", {}, b"", b""),
    "label in both headers": envelope(b"\xa1\x01\x27", {1: -8}, b"", b""),
}


@pytest.mark.parametrize("data", SHAPES.values(), ids=SHAPES.keys())
def test_other_shapes_are_refused(data):
    with pytest.raises(InvalidError) as caught:
        cose.decode_sign1(data)
    assert caught.value.code == "malformed-cose"


@pytest.mark.parametrize(
    "name", ["same key twice", "unsorted keys", "long 0", "true as a key", "indefinite map"]
)
def test_the_protected_header_is_read_as_strictly(name):
    with pytest.raises(InvalidError) as caught:
        cose.decode_sign1(envelope(bytes.fromhex(REFUSED[name]), {}, b"", b""))
    assert caught.value.code == "malformed-cbor"
    assert "protected header" in caught.value.where


def test_the_signed_bytes_are_the_sig_structure_of_rfc_9052():
    message = signed()
    expected = b"\x84\x6aSignature1" + cbor2.dumps(message.protected) + b"\x40" + cbor2.dumps(PAYLOAD)
    key_of("ed25519").public.verify(message.signature, expected)
