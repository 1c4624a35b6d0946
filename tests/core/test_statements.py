from __future__ import annotations

import dataclasses

import cbor2
import pytest
from hypothesis import given, settings
from msgspec import UNSET, structs

from ledger.core import cose, receipts
from ledger.core import statements as s
from ledger.core.canonical import MAX_SAFE_INTEGER, encode_canonical
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.keys import ED25519, EDDSA, ES256, ML_DSA_44
from ledger.core.merkle import leaf_hash
from ledger.core.records import Energy, Usage, document_digest
from tests.build import ISSUER, make_deployment, make_factor_set, make_price_book, make_record, make_records
from tests.core import strategies
from tests.core.examples import ALGORITHMS, HEX, KINDS, key_of, logged, payload_of, statement_of


def opens(data, key):
    """Decode and verify."""
    statement = s.decode_statement(data)
    s.verify_statement(statement, key)
    return statement


def forge(
    payload, *, header=None, claims=None, drop=(), unprotected=None, algorithm="ed25519", detached=False
):
    """A statement whose header is whatever we like, with a signature that verifies."""
    key = key_of(algorithm)
    data = payload if isinstance(payload, bytes) else encode_canonical(payload)
    subject = "" if isinstance(payload, bytes) else s.subject_of(payload)
    full = {
        cose.ALG: key.public.alg,
        cose.KID: key.public.kid,
        cose.CONTENT_TYPE: s.CONTENT_TYPE,
        cose.CWT_CLAIMS: {cose.CWT_ISS: ISSUER, cose.CWT_SUB: subject} if claims is None else claims,
    }
    full = {label: value for label, value in (full | (header or {})).items() if label not in drop}
    protected = cose.encode_cbor(full)
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", data]))
    return cose.encode_sign1(
        cose.Sign1(protected, full, unprotected or {}, None if detached else data, signature)
    )


# --- round trips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_signs_decodes_and_verifies(kind, algorithm):
    signed = statement_of(kind, algorithm)
    opened = opens(signed.entry, key_of(algorithm).public)
    assert opened == signed
    assert opened.kind == kind
    assert opened.issuer == ISSUER
    assert opened.kid == key_of(algorithm).public.kid
    assert opened.leaf_hash == leaf_hash(signed.entry)
    assert opened.payload == payload_of(kind)
    assert opened.message.payload == encode_canonical(signed.payload)


def test_the_kinds_here_are_all_there_are():
    assert {each.__struct_config__.tag for each in s.Payload.__args__} == set(KINDS)


@settings(max_examples=60)
@given(strategies.payloads)
def test_any_valid_payload_comes_back(payload):
    signed = s.sign_statement(payload, issuer=ISSUER, key=key_of("ed25519"))
    assert opens(signed.entry, key_of("ed25519").public) == signed
    assert signed.payload == payload


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("deployment", f"tallystick:deployment:{document_digest(make_deployment())}"),
        ("factors", f"tallystick:factors:{document_digest(make_factor_set())}"),
        ("prices", f"tallystick:prices:{document_digest(make_price_book())}"),
        ("heartbeat", "tallystick:heartbeat:1"),
        ("acknowledgement", f"tallystick:statement:{HEX}"),
        ("erasure", f"tallystick:statement:{HEX}"),
        ("admin", "tallystick:admin:api-key.create"),
    ],
)
def test_the_subject_says_what_it_is_about(kind, subject):
    assert statement_of(kind).subject == subject


# --- changes ---------------------------------------------------------------------------------------------


def refused(data, key):
    """Whether decoding or verifying refuses ``data`` as it should; any other error passes through."""
    try:
        opens(data, key)
    except (InvalidError, CorruptError):
        return True
    return False


def flips(data, positions):
    for position in positions:
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= mask
            yield position, bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_any_changed_byte_of_a_statement_is_refused(kind):
    entry, key = statement_of(kind).entry, key_of("ed25519").public
    accepted = [at for at, data in flips(entry, range(len(entry))) if not refused(data, key)]
    assert accepted == []


@pytest.mark.parametrize("algorithm", ["es256", "ml-dsa-44"])
def test_any_changed_byte_is_refused_whatever_the_algorithm(algorithm):
    entry, key = statement_of("heartbeat", algorithm).entry, key_of(algorithm).public
    everywhere = range(len(entry)) if algorithm == "es256" else [*range(400), *range(400, len(entry), 41)]
    accepted = [at for at, data in flips(entry, everywhere) if not refused(data, key)]
    assert accepted == []


@pytest.mark.parametrize("kind", ["heartbeat", "batch"])
def test_cut_or_longer_statements_are_refused(kind):
    entry, key = statement_of(kind).entry, key_of("ed25519").public
    for length in range(len(entry)):
        assert refused(entry[:length], key)
    for more in (b"\x00", b"\xf6", entry):
        assert refused(entry + more, key)


def test_the_next_issuer_key_does_not_verify():
    for algorithm in ALGORITHMS:
        entry = statement_of("heartbeat", algorithm).entry
        for other in [key_of(a).public for a in ALGORITHMS if a != algorithm] + [key_of(algorithm, 2).public]:
            with pytest.raises(InvalidError) as caught:
                opens(entry, other)
            assert caught.value.code == "other-key"


# --- algorithms and keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", [EDDSA, ED25519, ES256, ML_DSA_44, -35, 0, None, "EdDSA"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_alg_must_fit_the_key(algorithm, alg):
    data = forge(payload_of("heartbeat"), header={cose.ALG: alg}, algorithm=algorithm)
    fits = {"ed25519": (EDDSA, ED25519), "es256": (ES256,), "ml-dsa-44": (ML_DSA_44,)}[algorithm]
    if alg in fits:
        opens(data, key_of(algorithm).public)
        return
    with pytest.raises(InvalidError) as caught:
        opens(data, key_of(algorithm).public)
    assert caught.value.code == "bad-algorithm"


def test_the_kid_must_be_the_keys():
    # The signature verifies; but whoever looks the key up by kid would find another.
    data = forge(payload_of("heartbeat"), header={cose.KID: key_of("ed25519", 2).public.kid})
    with pytest.raises(InvalidError) as caught:
        opens(data, key_of("ed25519").public)
    assert caught.value.code == "other-key"


def test_the_higher_s_of_es256_is_refused():
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    statement = statement_of("heartbeat", "es256")
    r, s_low = statement.message.signature[:32], int.from_bytes(statement.message.signature[32:], "big")
    other = r + (order - s_low).to_bytes(32, "big")
    data = cose.encode_sign1(dataclasses.replace(statement.message, signature=other))
    with pytest.raises(CorruptError, match="high s"):
        opens(data, key_of("es256").public)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "make", [lambda s: b"", lambda s: s[:-1], lambda s: s + b"\0", lambda s: bytes(len(s))]
)
def test_other_signature_lengths_and_zeros_are_refused(algorithm, make):
    statement = statement_of("heartbeat", algorithm)
    data = cose.encode_sign1(
        dataclasses.replace(statement.message, signature=make(statement.message.signature))
    )
    with pytest.raises(CorruptError):
        opens(data, key_of(algorithm).public)


# --- headers ---------------------------------------------------------------------------------------------

HEADERS = {
    "no alg": {"drop": (cose.ALG,)},
    "no kid": {"drop": (cose.KID,)},
    "kid too short": {"header": {cose.KID: b"x" * 31}},
    "kid is text": {"header": {cose.KID: "x" * 32}},
    "no content type": {"drop": (cose.CONTENT_TYPE,)},
    "other content type": {"header": {cose.CONTENT_TYPE: "application/json"}},
    "content type is a number": {"header": {cose.CONTENT_TYPE: 50}},
    "no claims": {"drop": (cose.CWT_CLAIMS,)},
    "claims are an array": {"claims": []},
    "no issuer": {"claims": {cose.CWT_SUB: "tallystick:heartbeat:1"}},
    "no subject": {"claims": {cose.CWT_ISS: ISSUER}},
    "issuer is bytes": {"claims": {cose.CWT_ISS: ISSUER.encode(), cose.CWT_SUB: "tallystick:heartbeat:1"}},
    "other subject": {"claims": {cose.CWT_ISS: ISSUER, cose.CWT_SUB: "tallystick:heartbeat:2"}},
    "subject of another kind": {"claims": {cose.CWT_ISS: ISSUER, cose.CWT_SUB: f"tallystick:batch:{HEX}"}},
    "iat": {"claims": {cose.CWT_ISS: ISSUER, cose.CWT_SUB: "tallystick:heartbeat:1", cose.CWT_IAT: 5}},
    "bad issuer": {"claims": {cose.CWT_ISS: "a b", cose.CWT_SUB: "tallystick:heartbeat:1"}},
    "issuer with newline": {"claims": {cose.CWT_ISS: ISSUER + "\n", cose.CWT_SUB: "tallystick:heartbeat:1"}},
    "critical": {"header": {cose.CRIT: [cose.CWT_CLAIMS]}},
    "another label": {"header": {99: 0}},
    "a text label": {"header": {"alg": "none"}},
    "vds": {"header": {cose.VDS: 1}},
    "detached payload": {"detached": True},
    "unprotected kid": {"unprotected": {5: b""}},
    "unprotected alg": {"drop": (cose.ALG,), "unprotected": {cose.ALG: EDDSA}},
    "unprotected claims": {"drop": (cose.CWT_CLAIMS,), "unprotected": {cose.CWT_CLAIMS: {1: ISSUER}}},
    "unprotected text label": {"unprotected": {"x": 1}},
    "receipts and more": {"unprotected": {cose.RECEIPTS: [b"x"], 99: 0}},
    "no receipts in the array": {"unprotected": {cose.RECEIPTS: []}},
    "receipts are bytes": {"unprotected": {cose.RECEIPTS: b"x"}},
    "receipts are numbers": {"unprotected": {cose.RECEIPTS: [1]}},
    "receipts are maps": {"unprotected": {cose.RECEIPTS: {0: b"x"}}},
    "receipts are null": {"unprotected": {cose.RECEIPTS: None}},
}


@pytest.mark.parametrize("changes", HEADERS.values(), ids=HEADERS.keys())
def test_other_headers_are_refused_although_the_signature_verifies(changes):
    payload = payload_of("heartbeat")
    opens(forge(payload), key_of("ed25519").public)
    with pytest.raises(InvalidError) as caught:
        opens(forge(payload, **changes), key_of("ed25519").public)
    assert caught.value.code in {"malformed-statement", "bad-algorithm", "bad-issuer-name", "malformed-cose"}


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"null", b"[]", encode_canonical(make_record(make_deployment())), b"\xa0"],
)
def test_other_payloads_are_refused(payload):
    with pytest.raises(InvalidError) as caught:
        opens(forge(payload), key_of("ed25519").public)
    assert caught.value.code in {"schema", "malformed-json"}


@pytest.mark.parametrize(
    "name",
    ["a", "gpu-7.example.com/vllm", "example.com:8080/a/b_c~d", "x" * 255, "A9"],
)
def test_issuer_names_that_are_usable(name):
    assert s.check_issuer_id(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a ",
        "-a",
        "a-",
        "/a",
        "a/",
        "a b",
        "a\n",
        "a+b",
        "é",
        "https://example.com/",
        "x" * 256,
        "a\x00",
    ],
)
def test_issuer_names_that_are_not(name):
    with pytest.raises(InvalidError) as caught:
        s.sign_statement(payload_of("heartbeat"), issuer=name, key=key_of("ed25519"))
    assert caught.value.code == "bad-issuer-name"


# --- payload rules ---------------------------------------------------------------------------------------

INCONSISTENT = {
    "prev missing": ("heartbeat", {"prev": UNSET}),
    "prev at the start": ("heartbeat", {"seq": 0}),
    "prev upper case": ("heartbeat", {"prev": HEX.upper()}),
    "prev short": ("heartbeat", {"prev": HEX[:-2]}),
    "seq negative": ("heartbeat", {"seq": -1}),
    "seq past 2^53": ("heartbeat", {"seq": MAX_SAFE_INTEGER + 1}),
    "seq past 2^64": ("heartbeat", {"seq": 2**70}),
    "seq a float": ("heartbeat", {"seq": 1.0}),
    "seq a boolean": ("heartbeat", {"seq": True}),
    "batch of nothing": ("batch", {"count": 0}),
    "batch of 4097": ("batch", {"count": 4097}),
    "batch root": ("batch", {"root": "g" * 64}),
    "batch without deployments": ("batch", {"deployments": ()}),
    "batch deployments unsorted": ("batch", {"deployments": ("cd" * 32, HEX)}),
    "batch deployments doubled": ("batch", {"deployments": (HEX, HEX)}),
    "batch deployments not hex": ("batch", {"deployments": (HEX[:-1] + "\n",)}),
    "batch factors unsorted": ("batch", {"factors": ("cd" * 32, HEX)}),
    "batch prices unsorted": ("batch", {"prices": ("cd" * 32, HEX)}),
    "batch prices empty": ("batch", {"prices": ()}),
    "batch prices not hex": ("batch", {"prices": ("g" * 64,)}),
    "prices of a period turned around": (
        "prices",
        {"prices": make_price_book(valid_from_us=5, valid_until_us=5)},
    ),
    "batch times turned around": ("batch", {"first_us": 6, "last_us": 5}),
    "batch too many documents": ("batch", {"factors": tuple(f"{n:064x}" for n in range(257))}),
    "evaluation of nothing": ("evaluation", {"record": UNSET}),
    "evaluation of two": ("evaluation", {"statement": HEX}),
    "evaluation of no UUID": ("evaluation", {"record": "x" * 36}),
    "evaluation of UUID 4": ("evaluation", {"record": "01234567-89ab-4def-8123-456789abcdef"}),
    "evaluation without metrics": ("evaluation", {"metrics": {}}),
    "evaluation metric newline": (
        "evaluation",
        {"metrics": {"a\n": payload_of("evaluation").metrics["bleu"]}},
    ),
    "evaluation statement not hex": ("evaluation", {"record": UNSET, "statement": "-" * 64}),
    "correction of no UUID": ("correction", {"record": "é" * 36}),
    "correction hash": ("correction", {"record_hash": HEX.upper()}),
    "correction of nothing": ("correction", {"energy": UNSET, "carbon_ng": UNSET}),
    "correction without reason": ("correction", {"reason": ""}),
    "correction out of range": (
        "correction",
        {"energy": Energy(energy_uj=5, method="measured", source="x", low_uj=6)},
    ),
    "key missing": ("key", {"key": UNSET}),
    "key on revoke": ("key", {"action": "revoke"}),
    "key not hex": ("key", {"key": "zz"}),
    "key half a byte": ("key", {"key": payload_of("key").key[:-1]}),
    "key upper case": ("key", {"key": payload_of("key").key.upper()}),
    "key empty": ("key", {"key": ""}),
    "key cut": ("key", {"key": payload_of("key").key[:-2]}),
    "key is no COSE_Key": ("key", {"key": "a0"}),
    "key of another kid": ("key", {"kid": HEX}),
    "key kid upper case": ("key", {"kid": payload_of("key").kid.upper()}),
    "key issuer": ("key", {"issuer": "not usable"}),
    "key action": ("key", {"action": "remove"}),
    "acknowledgement receipt": ("acknowledgement", {"receipt": HEX.upper()}),
    "acknowledgement statement": ("acknowledgement", {"statement": "é" * 64}),
    "act without a name": ("admin", {"action": ""}),
    "act with a space": ("admin", {"action": "a b"}),
    "particulars that are no digest": ("admin", {"detail": "AB" * 32}),
    "erasure of nothing": ("erasure", {"positions": ()}),
    "erasure unsorted": ("erasure", {"positions": (2, 1)}),
    "erasure doubled": ("erasure", {"positions": (1, 1)}),
    "erasure past the last place": ("erasure", {"positions": (4096,)}),
    "erasure without rule": ("erasure", {"rule": ""}),
    "half a surrogate pair": ("erasure", {"rule": "\udc00"}),
}


@pytest.mark.parametrize(("kind", "changes"), INCONSISTENT.values(), ids=INCONSISTENT.keys())
def test_inconsistent_payloads_are_neither_signed_nor_read(kind, changes):
    payload = structs.replace(payload_of(kind), **changes)
    with pytest.raises(InvalidError):
        s.sign_statement(payload, issuer=ISSUER, key=key_of("ed25519"))
    if changes.get("rule") == "\udc00":  # nobody can write it, so there is nothing to read
        return
    with pytest.raises(InvalidError) as caught:
        opens(forge(payload), key_of("ed25519").public)
    assert caught.value.code in {
        "schema",
        "malformed-statement",
        "bad-price-book",
        "bad-key",
        "malformed-cbor",
        "bad-issuer-name",
    }


def test_a_revocation_has_no_key():
    statement = s.sign_statement(
        payload_of("key", action="revoke", key=UNSET, reason="lost"), issuer=ISSUER, key=key_of("ed25519")
    )
    opens(statement.entry, key_of("ed25519").public)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_of_every_algorithm_can_be_registered(algorithm):
    public = key_of(algorithm, 3).public
    payload = payload_of("key", kid=public.kid.hex(), key=cose.encode_cbor(public.to_cose_key()).hex())
    statement = s.sign_statement(payload, issuer=ISSUER, key=key_of("ed25519"))
    assert opens(statement.entry, key_of("ed25519").public).payload == payload


def largest(extra):
    return payload_of(
        "factors",
        factors=make_factor_set(
            sources=tuple(
                structs.replace(make_factor_set().sources[0], source="😀" * 1024, version="x" * 250)
                for _ in range(14)
            )
            + tuple(
                structs.replace(make_factor_set().sources[0], source="x" * n)
                for n in [1024] * (extra // 1024) + ([extra % 1024] if extra % 1024 else [])
            )
        ),
    )


def test_a_statement_has_at_most_65_535_bytes():
    def size(extra):
        return len(forge(largest(extra)))

    room = s.MAX_STATEMENT_BYTES - size(1000)
    exact = 1000 + room % 1024
    while size(exact) < s.MAX_STATEMENT_BYTES and size(exact + 1024) <= s.MAX_STATEMENT_BYTES:
        exact += 1024
    while size(exact) < s.MAX_STATEMENT_BYTES:
        exact += 1
    assert size(exact) == s.MAX_STATEMENT_BYTES
    key = key_of("ed25519")
    assert len(s.sign_statement(largest(exact), issuer=ISSUER, key=key).entry) == 65_535
    opens(forge(largest(exact)), key.public)
    with pytest.raises(InvalidError) as caught:
        s.sign_statement(largest(exact + 1), issuer=ISSUER, key=key)
    assert caught.value.code == "statement-too-large"
    for data in (forge(largest(exact + 1)), forge(largest(exact + 1), unprotected={cose.RECEIPTS: [b"x"]})):
        with pytest.raises(InvalidError) as caught:
            s.decode_statement(data)
        assert caught.value.code == "statement-too-large"


# --- transparent statements ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_receipts_change_no_hash(algorithm, count):
    statement = statement_of("batch", algorithm)
    attached = tuple(logged(7, index, subject=statement.subject).receipt for index in range(count))
    transparent = s.transparent_statement(statement, attached)
    opened = opens(transparent, key_of(algorithm).public)
    assert opened.entry == statement.entry
    assert opened.leaf_hash == statement.leaf_hash
    assert opened.receipts == attached
    assert s.transparent_statement(opened, opened.receipts) == transparent
    for each in opened.receipts:
        assert receipts.decode_receipt(each).subject == statement.subject


def test_without_receipts_it_is_the_statement():
    statement = statement_of("heartbeat")
    assert s.transparent_statement(statement, []) == statement.entry


def test_changed_bytes_of_a_transparent_statement_touch_the_receipt_alone_or_are_refused():
    statement = statement_of("heartbeat")
    place = logged(6, 4, entry=statement.entry, subject=statement.subject)
    transparent = s.transparent_statement(statement, [place.receipt])
    log_key, key = key_of("ed25519").public, key_of("ed25519").public
    for _, data in flips(transparent, range(len(transparent))):
        try:
            opened = opens(data, key)
            for each in opened.receipts:
                receipts.verify_receipt(
                    receipts.decode_receipt(each), opened.leaf_hash, log_key, subject=opened.subject
                )
        except (InvalidError, CorruptError):
            continue
        pytest.fail("a changed byte passed")


# --- sums ------------------------------------------------------------------------------------------------


def test_sums_are_exact_and_leave_out_what_no_record_has():
    some = make_records(5, make_deployment())
    totals = s.sum_records(some)
    assert totals.input_tokens == sum(r.usage.input_tokens for r in some)
    assert totals.energy_uj == sum(r.energy.energy_uj for r in some)
    assert totals.carbon_ng is UNSET
    assert totals.reasoning_tokens is UNSET
    one = structs.replace(some[0], carbon_ng=0, water_nl=7)
    totals = s.sum_records([one, *some[1:]])
    assert (totals.carbon_ng, totals.water_nl) == (0, 7)


def test_sums_past_2_53_are_refused_not_rounded():
    big = structs.replace(
        make_record(make_deployment()), usage=Usage(input_tokens=MAX_SAFE_INTEGER, output_tokens=0)
    )
    one = structs.replace(big, usage=Usage(input_tokens=1, output_tokens=0))
    assert s.sum_records([big]).input_tokens == MAX_SAFE_INTEGER
    with pytest.raises(InvalidError) as caught:
        s.sum_records([big, one])
    assert caught.value.code == "total-too-large"
