from __future__ import annotations

import hashlib
import re
import tracemalloc

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs

from ledger.core import records
from ledger.core.canonical import MAX_SAFE_INTEGER, encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.records import Commitment, Energy, Quality, Record, Usage, Weights
from tests.build import make_deployment, make_factor_set, make_record, make_records
from tests.core import strategies

DEPLOYMENT = make_deployment()
GOOD = make_record(DEPLOYMENT)
HEX = "ab" * 32
BROKEN = {
    "id upper case": {"id": GOOD.id.upper()},
    "id version 4": {"id": GOOD.id[:14] + "4" + GOOD.id[15:]},
    "id variant": {"id": GOOD.id[:19] + "c" + GOOD.id[20:]},
    "id without dashes": {"id": GOOD.id.replace("-", "") + "0000"},
    "id dashes moved": {"id": GOOD.id[:7] + "-" + GOOD.id[7] + GOOD.id[9:]},
    "id with a dash too many": {"id": GOOD.id[:-1] + "-"},
    "id with a digit of another script": {"id": GOOD.id[:-1] + "\u0663"},
    "id with a full-width letter": {"id": GOOD.id[:-1] + "\uff41"},
    "id with white space": {"id": GOOD.id[:-2] + "  "},
    "deployment upper case": {"deployment": HEX.upper()},
    "deployment with white space": {"deployment": HEX[:-2] + " \n"},
    "deployment with a dash": {"deployment": HEX[:-1] + "-"},
    "factors not hex": {"factors": "g" + HEX[1:]},
    "request not hex": {"request": HEX[:-1] + "\x00"},
    "input not hex": {"input": Commitment(digest="é" * 64, of="text")},
    "output not hex": {"output": Commitment(digest="😀" * 64, of="tokens")},
    "parent version 4": {"parent": GOOD.id[:14] + "4" + GOOD.id[15:]},
    "parent too odd": {"parent": "-" * 36},
    "tenant newline": {"tenant": "acme\n"},
    "tenant e-mail": {"tenant": "me@example.com"},
    "tenant starts with dot": {"tenant": ".acme"},
    "reason capital": {"finish_reason": "Stop"},
    "reason newline": {"finish_reason": "stop\n"},
    "ended before started": {"started_us": 6, "first_token_us": UNSET, "ended_us": 5},
    "first token before start": {"started_us": 6, "first_token_us": 5, "ended_us": 7},
    "first token after end": {"started_us": 6, "first_token_us": 8, "ended_us": 7},
    "cost without currency": {"cost_nano": 5},
    "cost of nothing without currency": {"cost_nano": 0},
    "currency without cost": {"currency": "EUR"},
    "cached more than input": {"usage": Usage(input_tokens=5, output_tokens=0, cached_input_tokens=6)},
    "energy below its range": {
        "energy": Energy(energy_uj=4, method="measured", source="x", low_uj=5, high_uj=6)
    },
    "energy above its range": {"energy": Energy(energy_uj=7, method="measured", source="x", high_uj=6)},
    "energy range turned around": {
        "energy": Energy(energy_uj=5, method="measured", source="x", low_uj=6, high_uj=4)
    },
}
OUTSIDE_THE_SCHEMA = {
    "deployment too short": {"deployment": HEX[:-1]},
    "deployment too long": {"deployment": HEX + "a"},
    "id too short": {"id": GOOD.id[:-1]},
    "tenant empty": {"tenant": ""},
    "tenant too long": {"tenant": "x" * 65},
    "reason too long": {"finish_reason": "x" * 33},
    "currency lower case": {"cost_nano": 1, "currency": "eur"},
    "currency with newline": {"cost_nano": 1, "currency": "EUR\n"},
    "quality none": {"quality": {}},
    "quality too many": {"quality": {f"m{i}": Quality(value=1, scale=0) for i in range(33)}},
    "quality name newline": {"quality": {"accuracy\n": Quality(value=1, scale=0)}},
    "quality name space": {"quality": {"a b": Quality(value=1, scale=0)}},
    "quality scale": {"quality": {"a": Quality(value=1, scale=10)}},
    "quality value": {"quality": {"a": Quality(value=-MAX_SAFE_INTEGER - 1, scale=0)}},
    "time past 2^53": {"ended_us": MAX_SAFE_INTEGER + 1},
    "time negative": {"started_us": -1},
    "source empty": {"energy": Energy(energy_uj=1, method="measured", source="")},
    "source too long": {"energy": Energy(energy_uj=1, method="measured", source="x" * 257)},
    "method unknown": {"energy": Energy(energy_uj=1, method="guessed", source="x")},  # type: ignore[arg-type]
}


def lines_of(each):
    return b"".join(records.encode_record(r) + b"\n" for r in each)


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN.keys())
def test_each_broken_rule_is_refused_alone_and_in_bulk(changes):
    bad = structs.replace(GOOD, **changes)
    with pytest.raises(InvalidError) as caught:
        records.check_record(bad)
    assert caught.value.code in {"schema", "inconsistent-record"}
    with pytest.raises(InvalidError) as again:
        records.decode_record(records.encode_record(bad))
    assert again.value.code == caught.value.code
    for block in ([bad], [GOOD, bad], [bad, GOOD], [GOOD] * 5 + [bad] + [GOOD]):
        assert not records._forms_hold(block)
        with pytest.raises(InvalidError) as named:
            records.decode_record_lines(lines_of(block))
        assert f"records[{block.index(bad)}]" in named.value.where


@pytest.mark.parametrize("changes", OUTSIDE_THE_SCHEMA.values(), ids=OUTSIDE_THE_SCHEMA.keys())
def test_the_decoder_refuses_what_is_outside_the_schema(changes):
    bad = structs.replace(GOOD, **changes)
    with pytest.raises(InvalidError) as caught:
        records.decode_record(records.encode_record(bad))
    assert caught.value.code == "schema"
    with pytest.raises(InvalidError):
        records.decode_record_lines(lines_of([GOOD, bad]))


# Nearly right values: what one edit makes of a good one.
near_hex = st.builds(
    lambda text, at, character: text[:at] + character + text[at + 1 :],
    strategies.hex32,
    st.integers(0, 63),
    st.sampled_from("0fFgA -\n\x00é\u0663\uff41😀"),
)
near_uuid = st.builds(
    lambda text, at, character: text[:at] + character + text[at + 1 :],
    strategies.uuids,
    st.integers(0, 35),
    st.sampled_from("07189abcF -\n\x00é\u0663\uff41😀"),
)
near_slug = st.text(st.sampled_from("aZ09._:~-\n é@/"), min_size=1, max_size=6)
few = st.integers(0, 3)
any_energy = strategies.build(
    Energy, {"low_uj": few, "high_uj": few}, energy_uj=few, method=st.just("measured"), source=st.just("x")
)
any_usage = strategies.build(
    Usage, {"cached_input_tokens": few, "reasoning_tokens": few}, input_tokens=few, output_tokens=few
)
near_records = strategies.build(
    Record,
    {
        "first_token_us": few,
        "finish_reason": near_slug,
        "request": near_hex,
        "tenant": near_slug,
        "factors": near_hex | strategies.hex32,
        "input": st.builds(Commitment, digest=near_hex, of=st.just("tokens")),
        "output": st.builds(Commitment, digest=near_hex, of=st.just("text")),
        "energy": any_energy,
        "cost_nano": few,
        "currency": st.just("EUR"),
        "parent": near_uuid,
    },
    id=near_uuid | strategies.uuids,
    deployment=near_hex | strategies.hex32,
    started_us=few,
    ended_us=few,
    usage=any_usage,
)

one_edit = st.one_of(
    *(
        st.builds(lambda value, name=name: structs.replace(GOOD, **{name: value}), values)
        for name, values in {
            "id": near_uuid,
            "parent": near_uuid,
            "deployment": near_hex,
            "factors": near_hex,
            "request": near_hex,
            "input": st.builds(Commitment, digest=near_hex, of=st.just("tokens")),
            "output": st.builds(Commitment, digest=near_hex, of=st.just("text")),
            "tenant": near_slug,
            "finish_reason": near_slug,
            "energy": any_energy,
            "usage": any_usage,
            "first_token_us": st.integers(GOOD.started_us - 1, GOOD.started_us + 1)
            | st.integers(GOOD.ended_us - 1, GOOD.ended_us + 1),
            "ended_us": st.integers(GOOD.started_us - 1, GOOD.started_us + 1),
        }.items()
    )
)


def passes(record):
    try:
        records.check_record(record)
    except InvalidError:
        return False
    return True


@settings(max_examples=400)
@given(st.lists(st.one_of(strategies.records(), near_records, one_edit), max_size=4))
def test_bulk_and_single_checks_agree(block):
    assert records._forms_hold(block) == all(map(passes, block))


@settings(max_examples=300)
@given(st.sampled_from(sorted(BROKEN)), st.lists(strategies.records(), max_size=3), st.data())
def test_one_bad_record_spoils_a_block(name, block, data):
    bad = structs.replace(GOOD, **BROKEN[name])
    block.insert(data.draw(st.integers(0, len(block))), bad)
    assert not records._forms_hold(block)


def one_by_one(data):
    if data and not data.endswith(b"\n"):
        return None
    try:
        return [records.decode_record(line) for line in data.split(b"\n")[:-1]]
    except InvalidError:
        return None


@given(st.lists(st.one_of(strategies.records(), near_records, one_edit), max_size=4), st.data())
def test_lines_decode_as_their_records_do(block, data):
    encoded = lines_of(block)
    if encoded and data.draw(st.booleans()):  # spoil a byte, or add one
        at = data.draw(st.integers(0, len(encoded)))
        cut = data.draw(st.integers(0, 2))
        encoded = (
            encoded[:at] + data.draw(st.sampled_from([b"", b"\n", b" ", b"0", b'"'])) + encoded[at + cut :]
        )
    expected = one_by_one(encoded)
    try:
        found, lines = records.decode_record_lines(encoded)
    except InvalidError:
        assert expected is None
    else:
        assert found == expected
        assert b"".join(line + b"\n" for line in lines) == encoded
        assert lines_of(found) == encoded


@given(st.lists(strategies.records(), max_size=4))
def test_lines_are_what_encoding_each_gives(block):
    assert records.encode_record_lines(block) == lines_of(block)
    found, lines = records.decode_record_lines(lines_of(block))
    assert found == block
    assert lines == [records.encode_record(r) for r in block]


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\n\n",
        b"\n" + lines_of([GOOD]),
        lines_of([GOOD]) + b"\n",
        lines_of([GOOD]).replace(b"\n", b"\r\n"),
    ],
)
def test_blank_lines_are_refused(data):
    with pytest.raises(InvalidError):
        records.decode_record_lines(data)


def test_the_shortest_record_on_many_lines_decodes():
    # No line may be taken for too short to be a record.
    shortest = records.Record(
        id=GOOD.id,
        deployment="0" * 64,
        started_us=0,
        ended_us=0,
        usage=records.Usage(input_tokens=0, output_tokens=0),
    )
    found, _ = records.decode_record_lines(lines_of([shortest] * 3))
    assert found == [shortest] * 3


def test_lines_too_short_for_records_are_named_without_a_list_of_them():
    data = lines_of([GOOD]) + b"\n" * (8 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidError, match=r"records\[1\]"):
            records.decode_record_lines(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_lines_are_no_records():
    assert records.decode_record_lines(b"") == ([], [])


def test_the_last_newline_is_needed():
    with pytest.raises(InvalidError) as caught:
        records.decode_record_lines(lines_of([GOOD, GOOD])[:-1])
    assert caught.value.code == "malformed-json"


def test_two_records_on_one_line_are_refused():
    line = records.encode_record(GOOD)
    with pytest.raises(InvalidError):
        records.decode_record_lines(line + line + b"\n")


def test_a_full_batch_decodes():
    block = make_records(4096, DEPLOYMENT)
    found, lines = records.decode_record_lines(records.encode_record_lines(block))
    assert found == block
    assert len(lines) == 4096


def test_a_record_may_have_16_kib_and_no_more():
    fat = {"quality": {f"{i:03}{'x' * 61}": Quality(value=1, scale=0) for i in range(32)}}
    size = len(records.encode_record(structs.replace(GOOD, **fat)))
    energy = Energy(energy_uj=1, method="measured", source="\x01" * 256)
    assert size + 6 * 256 < records.MAX_RECORD_BYTES  # so no record that fits the schema is too large
    biggest = structs.replace(GOOD, **fat, energy=energy)
    assert records.decode_record(records.encode_record(biggest)) == biggest
    long = records.encode_record(GOOD) + b" " * records.MAX_RECORD_BYTES
    for refuse in (records.decode_record, lambda data: records.decode_record_lines(data + b"\n")):
        with pytest.raises(InvalidError) as caught:
            refuse(long)
        assert caught.value.code == "record-too-large"


@pytest.mark.parametrize("edge", [0, MAX_SAFE_INTEGER])
def test_extremes_pass(edge):
    every = {name: edge for name in Record.__struct_fields__ if name.endswith(("_us", "_ng", "_nl", "_nano"))}
    usage = Usage(**dict.fromkeys(Usage.__struct_fields__, edge))
    energy = Energy(energy_uj=edge, low_uj=edge, high_uj=edge, method="measured", source="x")
    record = structs.replace(GOOD, **every, usage=usage, energy=energy, currency="XXX")
    assert records.decode_record(records.encode_record(record)) == record


def test_unknown_stays_absent_and_is_not_zero():
    plain = Record(
        id=GOOD.id,
        deployment=HEX,
        started_us=1,
        ended_us=2,
        usage=Usage(input_tokens=1, output_tokens=0),
    )
    data = records.encode_record(plain)
    assert data == (
        b'{"deployment":"' + HEX.encode() + b'","ended_us":2,"id":"' + GOOD.id.encode()
        + b'","started_us":1,"usage":{"input_tokens":1,"output_tokens":0}}'
    )  # fmt: skip
    assert records.decode_record(data).energy is UNSET


def test_a_record_hash_is_the_rfc_6962_leaf_hash():
    data = records.encode_record(GOOD)
    assert records.record_hash(data) == hashlib.sha256(b"\x00" + data).digest()


def test_a_digest_is_the_sha_256_of_the_canonical_bytes():
    for document in (DEPLOYMENT, make_factor_set()):
        assert records.document_digest(document) == hashlib.sha256(encode_canonical(document)).hexdigest()


@given(strategies.deployments, strategies.deployments)
@example(make_deployment(model="é"), make_deployment(model="e\u0301"))  # no Unicode normalization
def test_different_documents_have_different_digests(one, other):
    assert (records.document_digest(one) == records.document_digest(other)) == (one == other)


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "vllm\n"},
        {"engine": "v llm"},
        {"engine": ""},
        {"quantization": "x" * 65},
        {"region": "DE\n"},
        {"model": ""},
        {"model": "x" * 257},
        {"adapters": ()},
        {"weights": Weights(method="file", digest="ab" * 32 + "\n")},
        {"weights": Weights(method="file", digest="ab" * 20 + "\n")},
        {"weights": Weights(method="file", digest="AB" * 32)},
        {"weights": Weights(method="file", digest="ab" * 19)},
        {"power_mw": -1},
    ],
    ids=str,
)
def test_a_deployment_outside_the_schema_is_refused(changes):
    with pytest.raises(InvalidError) as caught:
        records.decode_deployment(encode_canonical(make_deployment(**changes)))
    assert caught.value.code == "schema"


@pytest.mark.parametrize(
    "changes",
    [{"pue_milli": 999}, {"sources": ()}, {"region": "DE\n"}, {"intensity_ug_per_kwh": -1}, {"name": ""}],
    ids=str,
)
def test_a_factor_set_outside_the_schema_is_refused(changes):
    with pytest.raises(InvalidError) as caught:
        records.decode_factor_set(encode_canonical(make_factor_set(**changes)))
    assert caught.value.code == "schema"


def test_published_patterns_are_what_is_checked():
    # JSON Schema's ``$`` is the end; Python's also stands before a last newline, which the code must refuse.
    schema = msgspec.json.schema(Record)
    tenant = schema["$defs"]["Record"]["properties"]["tenant"]["pattern"]
    for text in ("a", "a-b", "A.9~:_", "", "-a", "a b", "a\n"):
        record = structs.replace(GOOD, tenant=text)
        fits = re.search(tenant.removesuffix("$") + r"\Z", text) is not None
        assert passes(record) == fits, text
