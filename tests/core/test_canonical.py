from __future__ import annotations

import json
import time
import tracemalloc

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import canonical, records
from ledger.core import statements as s
from ledger.core.errors import InvalidError
from tests.build import make_deployment, make_record
from tests.core import strategies

PAYLOADS: msgspec.json.Decoder[s.Payload] = msgspec.json.Decoder(s.Payload)
HEARTBEAT = b'{"dropped":0,"issued_us":5,"kind":"heartbeat","seq":0,"version":1}'


def independent(value):
    """What the `rfc8785` library makes of the same values, which reach it as plain dicts and lists."""
    return rfc8785.dumps(msgspec.to_builtins(value))


@given(strategies.records())
def test_records_are_rfc_8785_and_come_back(record):
    data = records.encode_record(record)
    assert data == independent(record) == canonical.encode_canonical(record)
    assert records.decode_record(data) == record


@given(strategies.deployments)
def test_deployments_are_rfc_8785_and_come_back(deployment):
    data = canonical.encode_canonical(deployment)
    assert data == independent(deployment)
    assert records.decode_deployment(data) == deployment


@given(strategies.factor_sets)
def test_factor_sets_are_rfc_8785_and_come_back(factor_set):
    data = canonical.encode_canonical(factor_set)
    assert data == independent(factor_set)
    assert records.decode_factor_set(data) == factor_set


@given(strategies.payloads)
def test_statement_payloads_are_rfc_8785_and_come_back(payload):
    data = canonical.encode_canonical(payload)
    assert data == independent(payload)
    assert canonical.decode_canonical(data, PAYLOADS) == payload


def test_every_character_is_written_as_rfc_8785_writes_it():
    for start in range(0, 0x110000, 4096):
        text = "".join(map(chr, range(start, start + 4096))).encode("utf-8", "ignore").decode()
        assert canonical.encode_canonical(text) == rfc8785.dumps(text)


def test_record_fields_are_declared_in_canonical_order():
    # `encode_record` sorts no struct's fields: they must be declared in the order of RFC 8785.
    for kind in (records.Record, records.Usage, records.Commitment, records.Energy, records.Quality):
        assert list(kind.__struct_fields__) == sorted(kind.__struct_fields__)


def test_half_a_surrogate_pair_is_invalid_not_a_crash():
    with pytest.raises(InvalidError) as caught:
        canonical.encode_canonical(make_deployment(model="\ud800"))
    assert caught.value.code == "schema"


def respell(**changes):
    return json.dumps(json.loads(HEARTBEAT) | changes, sort_keys=True, separators=(",", ":")).encode()


OTHER_SPELLINGS = {
    "space after": (HEARTBEAT + b" ", "not-canonical"),
    "space before": (b" " + HEARTBEAT, "not-canonical"),
    "newline after": (HEARTBEAT + b"\n", "not-canonical"),
    "space after colon": (HEARTBEAT.replace(b'"seq":', b'"seq": '), "not-canonical"),
    "tab after comma": (HEARTBEAT.replace(b",", b",\t", 1), "not-canonical"),
    "key order": (
        b'{"issued_us":5,"dropped":0,"kind":"heartbeat","seq":0,"version":1}',
        "not-canonical",
    ),
    "same key twice": (HEARTBEAT.replace(b'"seq":0', b'"seq":0,"seq":0'), "not-canonical"),
    "key twice, second differs": (HEARTBEAT.replace(b'"seq":0', b'"seq":1,"seq":0'), "not-canonical"),
    "kind twice": (HEARTBEAT.replace(b'"kind"', b'"kind":"heartbeat","kind"'), "not-canonical"),
    "escaped letter in value": (HEARTBEAT.replace(b'"heartbeat"', b'"\\u0068eartbeat"'), "not-canonical"),
    "escaped letter in key": (HEARTBEAT.replace(b'"seq"', b'"\\u0073eq"'), "not-canonical"),
    "default left out": (HEARTBEAT.replace(b',"version":1', b""), "not-canonical"),
    "minus zero": (HEARTBEAT.replace(b'"seq":0', b'"seq":-0'), "not-canonical"),
    "float": (HEARTBEAT.replace(b'"seq":0', b'"seq":0.0'), "schema"),
    "exponent": (HEARTBEAT.replace(b"5", b"1e2"), "schema"),
    "huge exponent": (HEARTBEAT.replace(b"5", b"1e400"), "schema"),
    "negative": (HEARTBEAT.replace(b"5", b"-5"), "schema"),
    "2^53": (HEARTBEAT.replace(b"5", b"9007199254740992"), "schema"),
    "2^64": (HEARTBEAT.replace(b"5", b"18446744073709551616"), "schema"),
    "5,000 digits": (HEARTBEAT.replace(b"5", b"9" * 5000), "schema"),
    "text for number": (HEARTBEAT.replace(b"5", b'"5"'), "schema"),
    "boolean for number": (HEARTBEAT.replace(b"5", b"true"), "schema"),
    "null": (HEARTBEAT.replace(b"5", b"null"), "schema"),
    "optional as null": (HEARTBEAT.replace(b'"seq"', b'"prev":null,"seq"'), "schema"),
    "unknown field": (respell(zzz=1), "schema"),
    "missing field": (b'{"issued_us":5,"kind":"heartbeat","seq":0,"version":1}', "schema"),
    "unknown kind": (respell(kind="heartbeats"), "schema"),
    "kind null": (respell(kind=None), "schema"),
    "no kind": (b'{"dropped":0,"issued_us":5,"seq":0,"version":1}', "schema"),
    "version 2": (respell(version=2), "schema"),
    "array": (b"[" + HEARTBEAT + b"]", "schema"),
    "leading zero": (HEARTBEAT.replace(b"5", b"05"), "malformed-json"),
    "plus": (HEARTBEAT.replace(b"5", b"+5"), "malformed-json"),
    "hexadecimal": (HEARTBEAT.replace(b"5", b"0x5"), "malformed-json"),
    "NaN": (HEARTBEAT.replace(b"5", b"NaN"), "malformed-json"),
    "Infinity": (HEARTBEAT.replace(b"5", b"Infinity"), "malformed-json"),
    "single quotes": (HEARTBEAT.replace(b'"', b"'"), "malformed-json"),
    "comma at the end": (HEARTBEAT.replace(b"}", b",}"), "malformed-json"),
    "comment": (HEARTBEAT + b"//", "malformed-json"),
    "two documents": (HEARTBEAT * 2, "malformed-json"),
    "cut": (HEARTBEAT[:-1], "malformed-json"),
    "empty": (b"", "malformed-json"),
    "byte order mark": (b"\xef\xbb\xbf" + HEARTBEAT, "malformed-json"),
    "UTF-16": (HEARTBEAT.decode().encode("utf-16"), "malformed-json"),
    "NUL after": (HEARTBEAT + b"\0", "malformed-json"),
}


@pytest.mark.parametrize(("data", "code"), OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS.keys())
def test_any_other_spelling_is_refused(data, code):
    canonical.decode_canonical(HEARTBEAT, PAYLOADS)
    with pytest.raises(InvalidError) as caught:
        canonical.decode_canonical(data, PAYLOADS, where="here")
    assert (caught.value.code, caught.value.where) == (code, "here")


NAME = b'{"engine":"vllm","model":"%s"}'


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        (b"\\u00e9", "not-canonical"),  # é is to be written plainly
        (b"\\/", "not-canonical"),
        (b"\\u001F", "not-canonical"),  # escapes are lower-case
        (b"\\u0009", "not-canonical"),  # \t is the shorter one
        (b"\\ud83d\\ude00", "not-canonical"),  # an emoji as an escaped surrogate pair
        (b"\\ud83d", "malformed-json"),
        (b"\\ude00\\ud83d", "malformed-json"),
        (b"\xed\xa0\xbd", "malformed-json"),  # a lone surrogate in UTF-8
        (b"\xed\xa0\xbd\xed\xb8\x80", "malformed-json"),  # CESU-8
        (b"\xff", "malformed-json"),
        (b"\xc0\xaf", "malformed-json"),  # overlong
        (b"\xf4\x90\x80\x80", "malformed-json"),  # past U+10FFFF
        (b"\xc3", "malformed-json"),
        (b"\x1f", "malformed-json"),  # a bare control character
        (b"\n", "malformed-json"),
        (b"\\x41", "malformed-json"),
    ],
)
def test_text_has_one_spelling(spelling, code):
    for fine in ("é", "\\t", "\\u001f", "😀", "/", "\x7f", "e\u0301"):
        records.decode_deployment(NAME % fine.encode())
    with pytest.raises(InvalidError) as caught:
        records.decode_deployment(NAME % spelling)
    assert caught.value.code == code


@given(strategies.records(), st.data())
def test_white_space_anywhere_outside_text_is_refused(record, data):
    encoded = records.encode_record(record)
    outside = [0, len(encoded)]
    in_text = escaped = False
    for position, byte in enumerate(encoded):
        if escaped:
            escaped = False
        elif byte == 0x22:
            in_text = not in_text
        elif in_text:
            escaped = byte == 0x5C
        elif byte in b"{}[]:,":
            outside += [position, position + 1]
    at = data.draw(st.sampled_from(outside))
    with pytest.raises(InvalidError):
        records.decode_record(encoded[:at] + data.draw(st.sampled_from([b" ", b"\t", b"\r"])) + encoded[at:])


@given(strategies.records(), st.randoms(use_true_random=False))
def test_any_other_key_order_is_refused(record, random):
    def shuffled(value):
        if not isinstance(value, dict):
            return value
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}

    encoded = records.encode_record(record)
    mixed = json.dumps(shuffled(json.loads(encoded)), separators=(",", ":"), ensure_ascii=False).encode()
    if mixed == encoded:
        return
    with pytest.raises(InvalidError):
        records.decode_record(mixed)


@pytest.mark.parametrize(
    "bomb",
    [b"[" * 60_000, b'{"a":' * 60_000, b"[{" * 30_000, b"[" * 30_000 + b"]" * 30_000, b'{"a":' * 17],
    ids=["arrays", "objects", "both", "closed", "just too deep"],
)
def test_deep_nesting_is_refused_before_parsing(bomb):
    with pytest.raises(InvalidError) as caught:
        canonical.decode_canonical(bomb, PAYLOADS)
    assert caught.value.code == "too-deep"


def test_brackets_in_text_are_not_nesting():
    for text in ("[{" * 100, '"' + "[" * 100, '\\"' + "{" * 100, "\\", '"\\' + "]" * 100):
        data = canonical.encode_canonical(make_deployment(model=text, site="[" * 20))
        assert records.decode_deployment(data).model == text


def test_depth_is_bounded_in_records_too():
    line = records.encode_record(make_record(make_deployment()))
    deep = line.replace(b'"usage":{', b'"usage":' + b"[" * 8_000 + b"{")
    for refuse in (records.decode_record, lambda data: records.decode_record_lines(data + b"\n")):
        with pytest.raises(InvalidError) as caught:
            refuse(deep)
        assert caught.value.code == "too-deep"


def test_errors_quote_little_of_the_input():
    with pytest.raises(InvalidError) as caught:
        canonical.decode_canonical(respell(**{"x" * 60_000: 1}), PAYLOADS)
    assert len(str(caught.value)) < 500


def test_hostile_text_costs_neither_time_nor_memory():
    inputs = [
        b"[]" * 32_000,
        b'"' + b"\\" * 65_000,
        b"{" + b'"a":{},' * 9_000,
        b"9" * 65_000,
        b"[0," * 20_000,
    ]
    tracemalloc.start()
    begun = time.perf_counter()
    for data in inputs:
        with pytest.raises(InvalidError):
            canonical.decode_canonical(data, PAYLOADS)
    seconds = time.perf_counter() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 8 << 20
