"""Published vectors: short ones from RFCs here, whole sets from a checkout beside the project.

The sets are not copied. ``TALLYSTICK_VECTORS`` names a folder with checkouts as ``<owner>/<repository>`` (see
``tests/vectors/README.md``); without it those tests are skipped.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ledger.core import commitments, cose, keys, receipts
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.errors import CorruptError, InvalidError

CHECKOUTS = Path(os.environ.get("TALLYSTICK_VECTORS", "/nonexistent"))
EXAMPLES = CHECKOUTS / "cose-wg" / "Examples"
MERKLE = CHECKOUTS / "cose-wg" / "draft-ietf-cose-merkle-tree-proofs" / "examples"
DILITHIUM = CHECKOUTS / "cose-wg" / "draft-ietf-cose-dilithium" / "examples" / "cose" / "examples"
JCS = CHECKOUTS / "cyberphone" / "json-canonicalization" / "testdata"
UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID})


def here(folder: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not folder.is_dir(), reason="TALLYSTICK_VECTORS names no such checkout")


# --- RFC 8949: CBOR --------------------------------------------------------------------------------------

APPENDIX_A: list[tuple[str, Any]] = [
    ("00", 0),
    ("0a", 10),
    ("17", 23),
    ("1818", 24),
    ("1864", 100),
    ("1903e8", 1000),
    ("1a000f4240", 1_000_000),
    ("1b000000e8d4a51000", 1_000_000_000_000),
    ("1bffffffffffffffff", 2**64 - 1),
    ("3bffffffffffffffff", -(2**64)),
    ("20", -1),
    ("3863", -100),
    ("3903e7", -1000),
    ("f6", None),
    ("40", b""),
    ("4401020304", b"\x01\x02\x03\x04"),
    ("60", ""),
    ("6449455446", "IETF"),
    ("62225c", '"\\'),
    ("62c3bc", "\u00fc"),
    ("63e6b0b4", "\u6c34"),
    ("64f0908591", "\U00010151"),
    ("80", []),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
]
APPENDIX_A_WE_HAVE_NO_USE_FOR = (
    "c249010000000000000000 f90000 f93c00 fb3ff199999999999a f97c00 f97e00 f4 f5 f7 f0 f8ff "
    "c074323031332d30332d32315432303a30343a30305a c11a514b67b0 d74401020304 d818456449455446 "
    "5f42010243030405ff 7f657374726561646d696e67ff 9fff 9f018202039f0405ffff bf61610161629f0203ffff"
)
APPENDIX_F_NOT_WELL_FORMED = (
    "18 19 1a 1b 1901 1a0102 1b01020304050607 38 58 78 98 9a01ff00 b8 d8 f8 f900 fa0000 fb000000 "
    "41 61 5affffffff00 5bffffffffffffffff010203 7affffffff00 7b7fffffffffffffff010203 "
    "81 818181818181818181 8200 a1 a20102 a100 a2000000 c0 5f4100 7f6100 9f 9f0102 bf bf01020102 "
    "819f 9f8000 9f9f9f9f9fffffffff 9f819f819f9fffffff 1c 1d 1e 3c 3d 3e 5c 5d 5e 7c 7d 7e 9c 9d 9e bc bd be "
    "dc dd de fc fd fe f800 f801 f818 f81f 5f00ff 5f21ff 5f6100ff 5f80ff 5fa0ff 5fc000ff 5fe0ff 7f4100ff "
    "5f5f4100ffff 7f7f6100ffff ff 81ff 8200ff a1ff a1ff00 a100ff a20000ff 9f81ff 9f829f819f9fffffffff "
    "bf00ff bf000000ff 1f 3f df"
)


@pytest.mark.parametrize(("data", "value"), APPENDIX_A, ids=[each[0] for each in APPENDIX_A])
def test_rfc_8949_appendix_a(data, value):
    assert cose.encode_cbor(value).hex() == data
    assert cose.decode_cbor(bytes.fromhex(data), where="x") == value


@pytest.mark.parametrize(
    "data", [*APPENDIX_A_WE_HAVE_NO_USE_FOR.split(), *APPENDIX_F_NOT_WELL_FORMED.split()]
)
def test_rfc_8949_other_types_and_appendix_f_are_refused(data):
    with pytest.raises(InvalidError) as caught:
        cose.decode_cbor(bytes.fromhex(data), where="x")
    assert caught.value.code == "malformed-cbor"


# --- RFC 5869, RFC 8152, RFC 9679, RFC 9964 --------------------------------------------------------------


def test_rfc_5869_case_2():
    # The one case for SHA-256 whose salt and key are as long as our secrets must be.
    prk = commitments.tenant_key(bytes(range(0x60, 0xB0)), bytes(range(0x50)))
    assert prk.hex() == "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244"


RFC_8152_KEY_11 = {
    1: 2,
    -1: 1,
    -2: bytes.fromhex("bac5b11cad8f99f9c72b05cf4b9e26d244dc189f745228255a219a86d6a09eff"),
    -3: bytes.fromhex("20138bf82dc1b6d562be0fa54ab7804a3a64b6d72ccfed6b6fb6ed28bbfc117e"),
}
RFC_8152_C_2_1 = (
    "d28443a10126a10442313154546869732069732074686520636f6e74656e742e58408eb33e4ca31d1c465ab05aac34cc6b23"
    "d58fef5c083106c4d25a91aef0b0117e2af9a291aa32e14ab834dc56ed2a223444547e01f11d3b0916e5a4c345cacb36"
)


def test_rfc_8152_appendix_c_2_1():
    data = bytes.fromhex(RFC_8152_C_2_1)
    message = cose.decode_sign1(data)
    key = keys.parse_cose_key(RFC_8152_KEY_11)
    cose.verify_sign1(message, key, understood=UNDERSTOOD)
    assert (message.payload, message.unprotected) == (b"This is the content.", {cose.KID: b"11"})
    assert cose.encode_sign1(message) == data
    unprotected = range(data.index(b"\xa1\x04"), data.index(b"\x54This"))  # no concern of the signature
    for position in set(range(len(data))) - set(unprotected):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises((InvalidError, CorruptError)):
            cose.verify_sign1(cose.decode_sign1(bytes(changed)), key, understood=UNDERSTOOD)


def test_rfc_9679_section_6():
    key = keys.parse_cose_key(
        {
            1: 2,
            -1: 1,
            -2: bytes.fromhex("65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d"),
            -3: bytes.fromhex("1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c"),
        }
    )
    assert key.kid.hex() == "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec"


def zero_seed_key():
    raw = mldsa.MLDSA44PrivateKey.from_seed_bytes(bytes(32))
    return keys.parse_private_pem(raw.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_rfc_9964_the_all_zeros_ml_dsa_44_key():
    kid = "b8969ab4b37da9f0684e42647eb8a0be8b5b661ebf5d76f0583bf5b8d3a8059a"
    assert zero_seed_key().public.kid.hex() == kid


# --- cose-wg/Examples ------------------------------------------------------------------------------------


def example(name):
    return json.loads((EXAMPLES / name).read_text())


def key_in(sign0):
    """Their JSON key as a COSE_Key."""

    def number(name):
        if f"{name}_hex" in key:
            return bytes.fromhex(key[f"{name}_hex"])
        return base64.urlsafe_b64decode(key[name] + "=" * (-len(key[name]) % 4))

    key = sign0["key"]
    if key["kty"] == "OKP":
        return {1: 1, -1: {"Ed25519": 6, "Ed448": 7}[key["crv"]], -2: number("x")}
    return {1: 2, -1: {"P-256": 1, "P-384": 2, "P-521": 3}[key["crv"]], -2: number("x"), -3: number("y")}


def verify_example(name):
    content = example(name)
    sign0 = content["input"]["sign0"]
    message = cose.decode_sign1(bytes.fromhex(content["output"]["cbor"]))
    cose.verify_sign1(message, keys.parse_cose_key(key_in(sign0)), understood=UNDERSTOOD)
    assert message.payload == content["input"]["plaintext"].encode() or "CWT" in name


@here(EXAMPLES)
@pytest.mark.parametrize(
    "name",
    ["RFC8152/Appendix_C_2_1.json", "eddsa-examples/eddsa-sig-01.json"],
)
def test_cose_examples_that_verify(name):
    verify_example(name)


@here(EXAMPLES)
def test_the_ecdsa_example_verifies_with_its_other_s():
    content = example("ecdsa-examples/ecdsa-sig-01.json")
    message = cose.decode_sign1(bytes.fromhex(content["output"]["cbor"]))
    key = keys.parse_cose_key(key_in(content["input"]["sign0"]))
    with pytest.raises(CorruptError, match="high s"):
        cose.verify_sign1(message, key, understood=UNDERSTOOD)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    low = order - int.from_bytes(message.signature[32:], "big")
    lower = dataclasses.replace(message, signature=message.signature[:32] + low.to_bytes(32, "big"))
    cose.verify_sign1(lower, key, understood=UNDERSTOOD)


@here(EXAMPLES)
@pytest.mark.parametrize(
    ("name", "code"),
    [
        # Meant to fail.
        ("sign1-tests/sign-fail-01.json", "malformed-cbor"),  # tag 998
        ("sign1-tests/sign-fail-02.json", "bad-signature"),
        ("sign1-tests/sign-fail-03.json", "bad-algorithm"),  # alg -999
        ("sign1-tests/sign-fail-04.json", "bad-algorithm"),  # alg "unknown"
        ("sign1-tests/sign-fail-06.json", "bad-signature"),  # protected header changed
        ("sign1-tests/sign-fail-07.json", "bad-signature"),
        # Good COSE, but not what Tallystick writes or reads.
        ("sign1-tests/sign-pass-01.json", "bad-algorithm"),  # alg in the unprotected header
        ("sign1-tests/sign-pass-02.json", "bad-signature"),  # external data, which we have none of
        ("sign1-tests/sign-pass-03.json", "malformed-cose"),  # no tag
        ("ecdsa-examples/ecdsa-sig-02.json", "bad-key"),  # P-384
        ("ecdsa-examples/ecdsa-sig-03.json", "bad-key"),  # P-521
        ("ecdsa-examples/ecdsa-sig-04.json", "bad-algorithm"),  # ES512 with P-256
        ("eddsa-examples/eddsa-sig-02.json", "bad-key"),  # Ed448
    ],
)
def test_cose_examples_that_do_not(name, code):
    with pytest.raises((InvalidError, CorruptError)) as caught:
        verify_example(name)
    assert caught.value.code == code


# --- cose-wg/draft-ietf-cose-dilithium (RFC 9964) --------------------------------------------------------


@here(DILITHIUM)
def test_ml_dsa_44_example():
    vector = json.loads((DILITHIUM / "ML_DSA_44.cose.json").read_text())
    published = dict(cbor2.loads(bytes.fromhex(vector["key"])))  # its map is not sorted
    with pytest.raises(InvalidError, match="private"):
        keys.parse_cose_key(published)
    del published[-2]
    key = keys.parse_cose_key(published)
    assert key == zero_seed_key().public
    message = cose.decode_sign1(bytes.fromhex(vector["sign1"]))
    cose.verify_sign1(message, key, understood=UNDERSTOOD)
    assert message.header == {cose.ALG: -48, cose.KID: key.kid}


@here(DILITHIUM)
@pytest.mark.parametrize("name", ["ML_DSA_65", "ML_DSA_87"])
def test_larger_ml_dsa_examples_are_refused(name):
    vector = json.loads((DILITHIUM / f"{name}.cose.json").read_text())
    published = dict(cbor2.loads(bytes.fromhex(vector["key"])))
    with pytest.raises(InvalidError) as caught:
        keys.parse_cose_key({label: value for label, value in published.items() if label != -2})
    assert caught.value.code == "bad-key"


# --- cose-wg/draft-ietf-cose-merkle-tree-proofs (RFC 9942) -----------------------------------------------


@here(MERKLE)
@pytest.mark.parametrize("name", ["inclusion-receipt.cbor", "consistency-receipt.cbor"])
def test_receipt_examples_are_cose_sign1_with_unsorted_headers(name):
    # Neither key nor leaf is published with them, and their headers are not deterministic.
    data = (MERKLE / name).read_bytes()
    with pytest.raises(InvalidError, match="sorted"):
        receipts.decode_receipt(data)


@here(MERKLE)
def test_the_inclusion_example_decodes_once_its_header_is_sorted_and_complete():
    protected, unprotected, payload, signature = cbor2.loads(
        (MERKLE / "inclusion-receipt.cbor").read_bytes()
    ).value
    header = dict(cbor2.loads(protected))
    header[cose.CWT_CLAIMS] = dict(header[cose.CWT_CLAIMS]) | {cose.CWT_SUB: "?", cose.CWT_IAT: 0}
    message = cose.Sign1(cose.encode_cbor(header), header, dict(unprotected), payload, signature)
    receipt = receipts.decode_receipt(cose.encode_sign1(message))
    assert (receipt.tree_size, receipt.leaf_index, len(receipt.path)) == (5, 3, 3)
    assert receipt.origin == "https://transparency-service.example.com"
    assert receipt.kid == b"test-key-1"


# --- cyberphone/json-canonicalization (RFC 8785) ---------------------------------------------------------


@here(JCS)
@pytest.mark.parametrize("name", ["arrays", "french", "unicode"])
def test_jcs_examples_that_fit(name):
    expected = (JCS / "output" / f"{name}.json").read_bytes().rstrip(b"\n")
    value = json.loads((JCS / "input" / f"{name}.json").read_bytes())
    assert encode_canonical(value) == expected
    decoder = msgspec.json.Decoder(Any)
    assert decode_canonical(expected, decoder) == value


@here(JCS)
def test_jcs_integers_written_as_floats():
    # ``structures`` has 56.0, which is not an integer to us before it is read as JavaScript does.
    value = json.loads(
        (JCS / "input" / "structures.json").read_bytes(), parse_float=lambda text: int(float(text))
    )
    expected = (JCS / "output" / "structures.json").read_bytes().rstrip(b"\n")
    assert encode_canonical(value) == expected


@here(JCS)
def test_jcs_examples_beyond_what_we_sign():
    # ``values`` has fractions; ``weird`` has a key past the BMP, which UTF-16 sorts before U+FB33. Our keys
    # are ASCII and our numbers integers, so that no document meets either rule.
    weird = json.loads((JCS / "input" / "weird.json").read_bytes())
    expected = (JCS / "output" / "weird.json").read_bytes().rstrip(b"\n")
    assert encode_canonical(weird) != expected
    basic = {key: value for key, value in weird.items() if max(key) <= "\uffff"}
    kept = json.loads(expected)
    assert list(json.loads(encode_canonical(basic))) == [key for key in kept if key in basic]
