"""Disputes: whatever differs between a customer's log and a bundle is found, with no false one."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from msgspec import UNSET, structs

from ledger.audit import dispute
from ledger.audit.dispute import Compared, Counts, Dispute, OwnRow, compare
from ledger.audit.settlement import SettledRecord
from ledger.core.commitments import commit_request, record_salt
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.keys import generate_key
from ledger.core.records import Usage
from tests.build import make_record

SECRET = bytes(32)
DIGEST = "ab" * 32


def settled(count: int, *, opened: bool = True) -> list[SettledRecord]:
    made = []
    for n in range(count):
        record = make_record(
            DIGEST,
            n=n,
            usage=Usage(input_tokens=10 + n % 3, output_tokens=5),
            cost_nano=100 + n,
            currency="EUR",
        )
        salt = record_salt(SECRET, record.id, "request")
        record = structs.replace(record, request=commit_request(f"r-{n}", salt).hex())
        made.append(SettledRecord(record, record, "gpu", n // 4, n % 4, salt if opened else None))
    return made


def row(line: int, each: SettledRecord, n: int, *, by: str, **changes: int) -> OwnRow:
    usage = each.record.usage
    counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost_nano": 100 + n}
    return OwnRow(
        line,
        each.record.id if by == "record" else None,
        f"r-{n}" if by == "request" else None,
        Counts(**(counts | changes)),
    )


@settings(max_examples=150, deadline=None)
@given(
    hs.integers(1, 25),
    hs.sampled_from(["record", "request"]),
    hs.sets(hs.integers(0, 24)),
    hs.sets(hs.integers(0, 24)),
    hs.sets(hs.integers(0, 24)),
    hs.integers(0, 3),
    hs.integers(0, 2**32),
)
def test_every_seeded_difference_is_found_and_no_other(
    count: int, by: str, lost: set[int], wrong: set[int], double: set[int], foreign: int, seed: int
) -> None:
    records = settled(count)
    lost, wrong, double = ({n for n in each if n < count} for each in (lost, wrong, double))
    wrong, double = wrong - lost, double - lost
    rows = [
        row(0, each, n, by=by, **({"output_tokens": 77 + n} if n in wrong else {}))
        for n, each in enumerate(records)
        if n not in lost
    ]
    rows += [
        row(0, records[n], n, by=by, **({"output_tokens": 77 + n} if n in wrong else {})) for n in double
    ]
    rows += [
        OwnRow(0, f"none-{n}" if by == "record" else None, f"none-{n}", Counts(input_tokens=1))
        for n in range(foreign)
    ]
    random.Random(seed).shuffle(rows)
    rows = [OwnRow(line, each.record, each.request, each.counts) for line, each in enumerate(rows, 2)]
    found = compare(records, rows)
    kinds = Counter(each.kind for each in found.differences)
    assert kinds == Counter(
        {
            kind: number
            for kind, number in (
                ("not-in-own-log", len(lost)),
                ("figures-differ", len(wrong)),
                ("twice", len(double)),
                ("not-in-bundle", foreign),
            )
            if number
        }
    )
    by_kind = {kind: {e.record for e in found.differences if e.kind == kind} for kind in kinds}
    assert by_kind.get("not-in-own-log", set()) == {records[n].record.id for n in lost}
    assert by_kind.get("figures-differ", set()) == {records[n].record.id for n in wrong}
    assert by_kind.get("twice", set()) == {records[n].record.id for n in double}
    assert found.matched == count - len(lost)
    for each in found.differences:
        if each.kind == "figures-differ":
            assert each.figures == ("output_tokens",)
            assert rows[int(each.own_line or 0) - 2].counts == each.own


def test_requests_that_the_bundle_does_not_open_are_told() -> None:
    records = settled(2, opened=False)
    with pytest.raises(InvalidError, match="opens none"):
        compare(records, [row(2, records[0], 0, by="request")])
    assert (
        compare(records, [row(2, each, n, by="record") for n, each in enumerate(records)]).differences == ()
    )


def test_trials_and_differences_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    records = settled(20)
    rows = [OwnRow(n, None, f"x-{n}", Counts(output_tokens=1)) for n in range(20)]
    with monkeypatch.context() as patched:
        patched.setattr(dispute, "MAX_TRIALS", 50)
        with pytest.raises(InvalidError, match="pairs of requests"):
            compare(records, rows)
    monkeypatch.setattr(dispute, "MAX_DIFFERENCES", 30)
    with pytest.raises(InvalidError, match="40 differences"):
        compare(records, rows)


def made_of(found: Compared) -> Dispute:
    return Dispute(
        customer="acme.example.com",
        bundle="cd" * 32,
        origin="log.example.com",
        tenant="t-1",
        made_us=1,
        own_rows=found.own_rows,
        records=found.records,
        matched=found.matched,
        differences=found.differences,
    )


def test_a_dispute_is_checked_against_its_bundle() -> None:
    records = settled(6)
    rows = [
        row(n, each, n, by="record", **({"input_tokens": 9} if n == 2 else {}))
        for n, each in enumerate(records)
    ]
    del rows[4]
    rows.append(OwnRow(9, "unknown", None, Counts(input_tokens=1)))
    made = made_of(compare(records, rows))
    assert list(dispute.check_against(made, "cd" * 32, records)) == []
    assert list(dispute.check_against(made, "ee" * 32, records)) == ["it is about another bundle"]
    for number, changes in (
        (0, {"logged": Counts(input_tokens=1)}),
        (0, {"own": Counts(input_tokens=12)}),
        (0, {"figures": ()}),
        (1, {"record": records[0].record.id}),
        (2, {"record": "no-such-record"}),
    ):
        differences = list(made.differences)
        differences[number] = structs.replace(differences[number], **changes)
        wrong = structs.replace(made, differences=tuple(differences))
        assert list(dispute.check_against(wrong, "cd" * 32, records)), (number, changes)
    assert list(dispute.check_against(structs.replace(made, records=7), "cd" * 32, records))


def test_a_changed_dispute_does_not_open() -> None:
    key = generate_key()
    records = settled(3)
    data = dispute.sign_dispute(made_of(compare(records, [row(2, records[0], 0, by="record")])), key)
    assert dispute.open_dispute(data, key.public).customer == "acme.example.com"
    assert json.loads(data)["dispute"]["differences"][0]["kind"] == "not-in-own-log"
    with pytest.raises(InvalidError, match="another key"):
        dispute.open_dispute(data, generate_key().public)
    generator = random.Random(1)
    for _ in range(400):
        at = generator.randrange(len(data) - 1)
        changed = bytearray(data)
        changed[at] ^= generator.randrange(1, 256)
        with pytest.raises((InvalidError, CorruptError)):
            dispute.open_dispute(bytes(changed), key.public)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must name"),
        ("record\nx\n", "must name"),
        ("input_tokens\n1\n", "must name"),
        ("record,input_tokens\n", "has no row"),
        ("record,input_tokens\nx\n", "1 cells"),
        ("record,input_tokens\n,1\n", "neither a record nor a request"),
        ("record,input_tokens\nx,1.0\n", "not a whole number"),
        ("record,input_tokens,input_tokens\nx,1,1\n", "column twice"),
        ('record,input_tokens\n"x,1\n', "is not CSV"),
        ('{"record": "x", "input_tokens": -1}', "not a whole number"),
        ('{"record": "x", "input_tokens": true}', "not a whole number"),
        ('{"record": 7, "input_tokens": 1}', "an id is no text"),
        ('{"record": "x"', "is not JSON"),
        ('{"record": "x", "input_tokens": 1}\n[]', "is not an object"),
    ],
)
def test_unsound_logs_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        dispute.read_own_log(text.encode())


@settings(max_examples=200, deadline=None)
@given(hs.binary(max_size=400) | hs.text(max_size=200).map(str.encode))
def test_foreign_bytes_are_refused_or_read(data: bytes) -> None:
    for content in (data, b"record,input_tokens\n" + data, b"{" + data):
        try:
            rows = dispute.read_own_log(content)
        except InvalidError:
            continue
        assert all(each.record or each.request for each in rows)


def test_what_a_log_does_not_say_is_not_compared() -> None:
    records = settled(1)
    rows = dispute.read_own_log(f"id,record,output_tokens\n9,{records[0].record.id},5\n".encode())
    assert rows[0].counts == Counts(output_tokens=5)
    assert rows[0].counts.input_tokens is UNSET
    assert compare(records, rows).differences == ()
