from __future__ import annotations

import base64
import copy
import hashlib
import re

import cbor2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from ledger.core import cose, keys, note
from ledger.core.errors import CorruptError, InvalidError
from tests.core.examples import ALGORITHMS, key_of

P = 2**255 - 19
ALG = {"ed25519": -8, "es256": -7, "ml-dsa-44": -48}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pem_and_cose_key_come_back(algorithm):
    key = key_of(algorithm)
    again = keys.parse_private_pem(key.to_pem())
    public = keys.parse_public_pem(key.public.to_pem())
    assert again.public == public == key.public == keys.parse_cose_key(key.public.to_cose_key())
    assert again.to_pem() == key.to_pem()
    assert (public.alg, public.name) == (ALG[algorithm], algorithm)
    public.verify(again.sign(b"message"), b"message")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_are_told_apart_by_their_thumbprint(algorithm):
    one, other = key_of(algorithm), key_of(algorithm, 1)
    again = keys.parse_private_pem(one.to_pem())
    assert one == again
    assert hash(one) == hash(again)
    assert one.public != other.public
    assert len({one.public, again.public, other.public}) == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_kid_is_the_thumbprint_of_rfc_9679(algorithm):
    public = key_of(algorithm).public
    required = {"ed25519": (1, -1, -2), "es256": (1, -1, -2, -3), "ml-dsa-44": (1, 3, -1)}[algorithm]
    members = {label: public.to_cose_key()[label] for label in required}
    assert public.kid == hashlib.sha256(cose.encode_cbor(members)).digest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_changed_messages_signatures_and_keys_do_not_verify(algorithm):
    key = key_of(algorithm)
    signature = key.sign(b"message")
    for bad in (b"", signature[:-1], signature + b"\0", bytes(len(signature)), b"\xff" * len(signature)):
        with pytest.raises(CorruptError):
            key.public.verify(bad, b"message")
    with pytest.raises(CorruptError):
        key.public.verify(signature, b"massage")
    with pytest.raises(CorruptError) as caught:
        key_of(algorithm, 1).public.verify(signature, b"message")
    assert caught.value.code == "bad-signature"


def test_es256_signatures_have_a_low_s_and_64_bytes():
    half = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2
    for number in range(64):
        signature = key_of("es256").sign(b"%d" % number)
        assert len(signature) == 64
        assert int.from_bytes(signature[32:], "big") <= half


def test_es256_numbers_have_one_length():
    key = key_of("es256")
    number, signature = next(
        (n, s) for n in range(10_000) if (s := key.sign(b"%d" % n))[32] == 0
    )  # one in 128 has a shorter s
    key.public.verify(signature, b"%d" % number)
    for other in (signature[:32] + signature[33:], signature[:32] + b"\0" + signature[32:]):
        with pytest.raises(CorruptError):
            key.public.verify(other, b"%d" % number)


def test_a_der_signature_is_not_a_cose_signature():
    key = key_of("es256")
    der = key.raw.sign(b"m", ec.ECDSA(keys.hashes.SHA256()))
    with pytest.raises(CorruptError):
        key.public.verify(der, b"m")


@pytest.mark.parametrize(("r", "s"), [(0, 1), (1, 0), (0, 0), (2**256 - 1, 1), (keys._P256_ORDER, 1)])
def test_es256_numbers_out_of_range_are_refused(r, s):
    with pytest.raises(CorruptError):
        key_of("es256").public.verify(r.to_bytes(32, "big") + s.to_bytes(32, "big"), b"m")


# --- secrets ---------------------------------------------------------------------------------------------


def secrets_of(key):
    """Every spelling in which a private key might leak."""
    if isinstance(key.raw, ec.EllipticCurvePrivateKey):
        raw = key.raw.private_numbers().private_value.to_bytes(32, "big")
    else:
        raw = key.raw.private_bytes_raw()
    pem = key.to_pem().decode()
    body = "".join(pem.split("\n")[1:-2])
    return [
        raw.hex(),
        str(int.from_bytes(raw, "big")),
        base64.b64encode(raw).decode(),
        body[24:60],
        repr(raw),
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_private_key_is_never_in_text(algorithm):
    key = key_of(algorithm)
    shown = [
        repr(key),
        str(key),
        f"{key}",
        repr([key]),
        repr({"key": key}),
        repr(vars(key)),
        repr(key.public),
    ]
    for text in shown:
        assert not any(secret in text for secret in secrets_of(key))
    assert key.public.kid.hex() in repr(key)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda pem: pem[:-20],
        lambda pem: pem.replace(b"PRIVATE", b"SECRET"),
        lambda pem: pem.replace(b"\n", b"\n!", 1),
        lambda pem: pem[:40] + pem[60:],
        lambda pem: b"",
        lambda pem: pem.split(b"\n")[1],
        lambda pem: pem.replace(b"-----BEGIN", b"BEGIN"),
    ],
)
def test_errors_about_a_private_key_do_not_show_it(algorithm, spoil):
    key = key_of(algorithm)
    spoilt = spoil(key.to_pem())
    with pytest.raises(InvalidError) as caught:
        keys.parse_private_pem(spoilt)
    error = caught.value
    shown = f"{error!r} {error} {error.__cause__!r}"
    assert error.__suppress_context__
    assert error.code == "bad-key"
    assert not any(secret in shown for secret in secrets_of(key))
    assert not any(line in shown for line in spoilt.decode("latin-1").split("\n") if len(line) > 20)


def test_encrypted_keys_are_refused():
    pem = key_of("ed25519").raw.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(InvalidError) as caught:
        keys.parse_private_pem(pem)
    assert caught.value.code == "bad-key"


# --- other kinds of keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate,
        x25519.X25519PrivateKey.generate,
        lambda: dsa.generate_private_key(1024),
    ],
    ids=["rsa", "p-384", "secp256k1", "ed448", "x25519", "dsa"],
)
def test_other_kinds_of_keys_are_refused(make):
    raw = make()
    private = raw.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = raw.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for parse, pem in ((keys.parse_private_pem, private), (keys.parse_public_pem, public)):
        with pytest.raises(InvalidError) as caught:
            parse(pem)
        assert caught.value.code == "bad-key"


def test_private_is_not_public_and_public_not_private():
    key = key_of("ed25519")
    with pytest.raises(InvalidError):
        keys.parse_public_pem(key.to_pem())
    with pytest.raises(InvalidError):
        keys.parse_private_pem(key.public.to_pem())


def test_unknown_algorithm_names_are_refused():
    for name in ("rsa", "", "Ed25519", "EdDSA"):
        with pytest.raises(InvalidError):
            keys.generate_key(name)


# --- COSE_Key --------------------------------------------------------------------------------------------


def changed(algorithm, **changes):
    """The COSE_Key of ``algorithm`` with labels replaced (``m2`` is -2) or, for None, left out."""
    key = key_of(algorithm).public.to_cose_key()
    for name, value in changes.items():
        label = int(name.replace("m", "-").replace("p", ""))
        if value is None:
            del key[label]
        else:
            key[label] = value
    return key


BAD_COSE_KEYS = {
    "not a map": [],
    "null": None,
    "empty": {},
    "no kty": changed("ed25519", p1=None),
    "kty symmetric": changed("ed25519", p1=4),
    "kty text": changed("ed25519", p1="OKP"),
    "no curve": changed("ed25519", m1=None),
    "x25519": changed("ed25519", m1=4),
    "ed448": changed("ed25519", m1=7),
    "no x": changed("ed25519", m2=None),
    "x short": changed("ed25519", m2=b"x" * 31),
    "x long": changed("ed25519", m2=b"x" * 33),
    "x text": changed("ed25519", m2="x" * 32),
    "other kid": changed("ed25519", p2=b"x" * 32),
    "kid text": changed("ed25519", p2="x"),
    "alg of another": changed("ed25519", p3=-7),
    "alg text": changed("ed25519", p3="EdDSA"),
    "alg null": changed("ed25519") | {3: None},
    "private ed25519": changed("ed25519", m4=b"d" * 32),
    "no y": changed("es256", m3=None),
    "compressed point": changed("es256", m3=True),
    "not on the curve": changed("es256", m2=b"\x01" * 32),
    "x = y = 0": changed("es256", m2=bytes(32), m3=bytes(32)),
    "coordinates past the field": changed("es256", m2=b"\xff" * 32),
    "p-384": changed("es256", m1=2),
    "es256k": changed("es256", m1=8),
    "alg es384": changed("es256", p3=-35),
    "private es256": changed("es256", m4=b"d" * 32),
    "ml-dsa without alg": changed("ml-dsa-44", p3=None),
    "ml-dsa-65": changed("ml-dsa-44", p3=-49),
    "ml-dsa short": changed("ml-dsa-44", m1=b"x" * 1311),
    "ml-dsa no key": changed("ml-dsa-44", m1=None),
    "private ml-dsa": changed("ml-dsa-44", m2=b"s" * 32),
}


@pytest.mark.parametrize("key", BAD_COSE_KEYS.values(), ids=BAD_COSE_KEYS.keys())
def test_other_cose_keys_are_refused(key):
    before = copy.deepcopy(key)
    with pytest.raises(InvalidError) as caught:
        keys.parse_cose_key(key)
    assert caught.value.code == "bad-key"
    assert key == before


def test_a_private_key_in_a_cose_key_is_not_repeated_in_the_error():
    with pytest.raises(InvalidError, match="private") as caught:
        keys.parse_cose_key(changed("ed25519", m4=b"\xde\xad" * 16))
    assert "dead" not in repr(caught.value)


def test_alg_and_kid_may_be_left_out_and_ed25519_may_be_fully_specified():
    public = key_of("ed25519").public
    assert keys.parse_cose_key(changed("ed25519", p2=None, p3=None)) == public
    assert keys.parse_cose_key(changed("ed25519", p3=-19)) == public


# --- weak keys -------------------------------------------------------------------------------------------


def recover_x(y):
    """x of a point of edwards25519 with this y, or None."""
    d = -121665 * pow(121666, -1, P) % P
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    for root in (x, x * pow(2, (P - 1) // 4, P) % P):
        if root * root % P == square:
            return root
    return None


def multiply(n, point):
    d = -121665 * pow(121666, -1, P) % P
    result = (0, 1)
    for _ in range(n):
        (x1, y1), (x2, y2) = result, point
        k = d * x1 * x2 * y1 * y2 % P
        result = (
            (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P,
            (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P,
        )
    return result


WEAK = [
    (y + extra | sign << 255).to_bytes(32, "little")
    for y in sorted(keys._SMALL_ORDER_Y)
    for extra in ((0, P) if y + P < 2**255 else (0,))  # also the spelling that is not reduced
    for sign in (0, 1)
]


def test_the_small_order_points_are_just_these():
    points = {(x, y) for y in keys._SMALL_ORDER_Y if (x := recover_x(y)) is not None}
    assert len(points) == 5
    assert all(multiply(8, point) == (0, 1) for point in points)
    # With the sign of x: 1 + 1 + 2 + 4 = 8 points of order 1, 2, 4 and 8; that is all, the cofactor being 8.
    assert sum(2 if x else 1 for x, _ in points) == 8


@pytest.mark.parametrize("material", WEAK, ids=bytes.hex)
def test_weak_ed25519_keys_are_refused(material):
    pem = base64.encodebytes(bytes.fromhex("302a300506032b6570032100") + material)
    pem = b"-----BEGIN PUBLIC KEY-----\n" + pem + b"-----END PUBLIC KEY-----\n"
    for load in (
        lambda: keys.public_from_ed25519(material),
        lambda: keys.parse_cose_key({1: 1, -1: 6, -2: material}),
        lambda: keys.parse_public_pem(pem),
    ):
        with pytest.raises(InvalidError):
            load()


def test_why_they_are_refused():
    base_point = b"\x58" + b"\x66" * 31
    weak = ed25519.Ed25519PublicKey.from_public_bytes(b"\x01" + bytes(31))
    for message in (b"I owe you nothing", b"I owe you everything"):
        weak.verify(base_point + b"\x01" + bytes(31), message)


# --- verifier keys ---------------------------------------------------------------------------------------


def test_a_verifier_key_and_its_cose_key_are_one_key():
    key = key_of("ed25519")
    vkey = note.VerifierKey.of("log.example.com", note.ED25519, key.public.raw_bytes())
    text = note.format_vkey(vkey)
    assert re.fullmatch(r"log\.example\.com\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}", text)
    assert keys.public_from_ed25519(note.parse_vkey(text).public_key) == key.public


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_ed25519_material_has_32_bytes(length):
    with pytest.raises(InvalidError):
        keys.public_from_ed25519(b"\x05" * length)


def test_raw_bytes_have_the_stated_form():
    assert len(key_of("ed25519").public.raw_bytes()) == 32
    assert len(key_of("ml-dsa-44").public.raw_bytes()) == 1312
    point = key_of("es256").public.raw_bytes()
    assert (len(point), point[0]) == (65, 4)


def test_cose_keys_are_deterministic_cbor():
    for algorithm in ALGORITHMS:
        data = cose.encode_cbor(key_of(algorithm).public.to_cose_key())
        assert keys.parse_cose_key(cose.decode_cbor(data, where="key")) == key_of(algorithm).public
        assert cbor2.dumps(cbor2.loads(data)) == data
