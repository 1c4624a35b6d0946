"""Settlement bundles: what they say is what a plain fold says, and any changed byte is found and named."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from msgspec import UNSET

from ledger.audit import verify_file
from ledger.audit.settlement import Settled, SettledRecord, is_settlement, verify_settlement
from ledger.core import settlement as form
from ledger.core.commitments import commit_request, record_salt
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.log_keys import log_verifier_key
from ledger.core.merkle import inclusion_path
from ledger.core.note import COSIGNATURE_ED25519, VerifierKey, format_vkey
from ledger.core.records import Energy, Record, encode_record, record_hash
from ledger.core.statements import Correction
from ledger.export.settlement import _Paths, make_settlement
from tests import build
from tests.build import ORIGIN, START_US

DAY_US = 86_400_000_000
SECRET = bytes(32)


@dataclass
class Made:
    """A ledger with two models, three tenants, two days, costs and corrections."""

    ledger: build.Ledger
    records: list[Record] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> PrivateKey:
        return self.ledger.log_key

    def of(self, tenant: str) -> list[Record]:
        return [record for record in self.records if record.tenant == tenant]


def priced(deployment: Any, *, n: int, **changes: Any) -> Record:
    record = build.make_record(
        deployment, n=n, salt="settle", cost_nano=1_000 + n, currency="EUR" if n % 2 else "USD", **changes
    )
    salt = record_salt(SECRET, record.id, "request")
    return build.changed(record, request=commit_request(f"req-{n}", salt).hex())  # type: ignore[type-var]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    ledger = build.make_ledger(tmp_path_factory.mktemp("ledger"))
    made = Made(ledger)
    issuer = ledger.issuer
    other = build.make_deployment(model="Qwen3-32B")
    ledger.append(issuer.deployment(other), issuer.factors())
    for batch in range(5):
        records = [
            priced(
                (ledger.deployment, other)[n % 2],
                n=batch * 37 + n,
                started_us=START_US + (batch % 2) * DAY_US + (batch * 37 + n) * 1000,
            )
            for n in range(37)
        ]
        made.records += records
        ledger.append(issuer.batch(records))
    first, second = made.of("t-1")[:2]
    for record, figures in (
        (first, {"energy": Energy(energy_uj=5, method="measured", source="again"), "cost_nano": 7}),
        (first, {"cost_nano": 9}),
        (second, {"carbon_ng": 11}),
    ):
        correction = Correction(
            record=record.id,
            record_hash=record_hash(encode_record(record)).hex(),
            reason="tests",
            **figures,
            **issuer.chain(),
        )
        ledger.append(issuer.sign(correction))
        made.corrected[record.id] = 1
    yield made
    ledger.store.close()


def salts(issuer: str, record: Record) -> bytes:
    return record_salt(SECRET, record.id, "request")


def bundle(made: Made, out: Path, tenant: str = "t-1", **options: Any) -> Path:
    make_settlement(made.ledger.store, out, log_key=made.key, tenant=tenant, **options)
    return out


def verified(made: Made, path: Path, **options: Any) -> Settled:
    return verify_settlement(path, [log_verifier_key(ORIGIN, made.key.public)], **options)


def faults(settled: Settled) -> list[str]:
    return [f"{each.where}: {each.what}" for each in settled.findings.kept]


def test_a_bundle_holds_the_tenants_records_and_nothing_else(made: Made, tmp_path: Path) -> None:
    found: list[SettledRecord] = []
    path = bundle(made, tmp_path / "b", request_salt=salts)
    assert is_settlement(path)
    settled = verified(made, path, on_record=found.append)
    assert faults(settled) == []
    expected = made.of("t-1")
    assert [each.record for each in found] == expected
    assert settled.records == settled.opened == len(expected)
    assert settled.corrected_records == 2
    assert settled.header is not None
    assert [each.issuer for each in settled.header.issuers] == [build.ISSUER]
    assert b"t-0" not in path.read_bytes()
    for each in found:
        assert each.request_salt is not None


def test_totals_equal_a_plain_fold(made: Made, tmp_path: Path) -> None:
    settled = verified(made, bundle(made, tmp_path / "b"))
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in made.of("t-1"):
        model = "SmolLM2-135M-Instruct" if record.deployment == made.ledger.digest else "Qwen3-32B"
        day = time.strftime("%Y-%m-%d", time.gmtime(record.started_us // 10**6))
        groups[day, model].append(record)
    assert [(each.day, each.model) for each in settled.totals] == sorted(groups)
    first, second = made.of("t-1")[:2]
    for line in settled.totals:
        records = groups[line.day, line.model]
        logged: dict[str, int] = defaultdict(int)
        costs: dict[str, int] = defaultdict(int)
        for record in records:
            assert record.energy is not UNSET
            assert record.currency is not UNSET
            assert record.cost_nano is not UNSET
            assert record.energy.low_uj is not UNSET
            logged["energy_uj"] += record.energy.energy_uj
            logged["low"] += record.energy.low_uj
            costs[record.currency] += record.cost_nano
        assert line.records == len(records)
        assert line.input_tokens == sum(r.usage.input_tokens for r in records)
        assert line.output_tokens == sum(r.usage.output_tokens for r in records)
        assert line.cached_input_tokens == sum(r.usage.cached_input_tokens or 0 for r in records)  # type: ignore[misc]
        before = line.figures if line.as_logged is UNSET else line.as_logged
        assert (before.energy_uj, before.energy_low_uj) == (logged["energy_uj"], logged["low"])
        assert before.cost_nano == dict(costs)
        change = 0
        if first in records:
            change += 5 - first.energy.energy_uj  # type: ignore[union-attr]
            costs[str(first.currency)] += 9 - first.cost_nano  # type: ignore[operator]
            assert line.as_logged is not UNSET
        assert line.figures.energy_uj == logged["energy_uj"] + change
        assert line.figures.cost_nano == dict(costs)
        assert line.corrected_records == (first in records) + (second in records)
        if second in records:
            assert (line.figures.carbon_ng, line.figures.carbon_records) == (11, 1)
            assert line.as_logged is not UNSET
            assert line.as_logged.carbon_ng is UNSET


def test_the_same_bytes_each_time_and_no_file_is_replaced(made: Made, tmp_path: Path) -> None:
    one, two = bundle(made, tmp_path / "one"), bundle(made, tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(RefusedError, match="exists"):
        bundle(made, one)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "two"]
    with pytest.raises(InvalidError, match="no record of tenant"):
        bundle(made, tmp_path / "none", tenant="t-9")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "two"]


def test_a_period_bounds_the_records(made: Made, tmp_path: Path) -> None:
    middle = START_US + DAY_US
    settled = verified(made, bundle(made, tmp_path / "b", to_us=middle))
    assert settled.records == sum(r.started_us < middle for r in made.of("t-1")) > 0
    later = verified(made, bundle(made, tmp_path / "c", from_us=middle))
    assert settled.records + later.records == len(made.of("t-1"))


@hs.composite
def _edits(draw: hs.DrawFn, size: int) -> tuple[int, int]:
    return draw(hs.integers(0, size - 1)), draw(hs.integers(1, 255))


def place_of(data: bytes, at: int) -> tuple[int, str]:
    """Line number and part of a byte."""
    begin = data.rfind(b"\n", 0, at) + 1
    line = data[begin : data.index(b"\n", begin)]
    for part in (*form.PARTS, "seal"):
        if b'"line":"%s"' % part.encode() in line:
            return data.count(b"\n", 0, at) + 1, part
    return 1, "magic"


def test_any_changed_byte_is_found_and_named(made: Made, tmp_path: Path) -> None:
    path = bundle(made, tmp_path / "b", request_salt=salts)
    data = path.read_bytes()
    target = tmp_path / "changed"

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(_edits(len(data)))
    def check(edit: tuple[int, int]) -> None:
        at, flip = edit
        changed = bytearray(data)
        changed[at] ^= flip
        target.write_bytes(bytes(changed))
        number, part = place_of(data, at)
        found = faults(verified(made, target))
        assert found, (at, flip)
        named = {f"line {n}" for n in (number, number + 1)} | {f"{part} part", "total of", "totals", "header"}
        if part == "magic":
            named = {"line 1"}
        elif part in ("leaf", "record"):
            named -= {"header", "totals", "total of"}
        assert any(word in text for text in found for word in named), (part, number, found)

    check()


def test_whole_lines_cannot_go_come_or_change_places(made: Made, tmp_path: Path) -> None:
    lines = bundle(made, tmp_path / "b").read_bytes().splitlines(keepends=True)
    generator = random.Random(7)
    target = tmp_path / "changed"
    for _ in range(120):
        changed = list(lines)
        at, to = generator.randrange(len(lines)), generator.randrange(len(lines))
        match generator.randrange(4):
            case 0:
                del changed[at]
            case 1:
                changed.insert(to, lines[at])
            case 2:
                if lines[at] == lines[to]:
                    continue
                changed[at], changed[to] = changed[to], changed[at]
            case _:
                changed = changed[:at]
        target.write_bytes(b"".join(changed))
        assert faults(verified(made, target)), (at, to)


def test_a_forged_seal_or_another_log_is_refused(made: Made, tmp_path: Path) -> None:
    from ledger.core.keys import generate_key

    path = bundle(made, tmp_path / "b")
    stranger = generate_key()
    found = verify_settlement(path, [log_verifier_key(ORIGIN, stranger.public)])
    assert faults(found)
    lines = path.read_bytes().splitlines(keepends=True)
    records = [n for n, line in enumerate(lines) if b'"line":"record"' in line]
    del lines[records[3]]
    digests = form.Digests()
    for line in lines[1:-1]:
        part = next(part for part in form.PARTS if b'"line":"%s"' % part.encode() in line)
        digests.add(part, line)
    lines[-1] = form.encode_line(form.seal(digests.contents(), ORIGIN, stranger))
    forged = tmp_path / "forged"
    forged.write_bytes(b"".join(lines))
    assert any("log's key" in text for text in faults(verified(made, forged)))
    # Even with the log's own seal, totals that do not follow from the records are found.
    lines[-1] = form.encode_line(form.seal(digests.contents(), ORIGIN, made.key))
    forged.write_bytes(b"".join(lines))
    assert any(text.startswith("total of") for text in faults(verified(made, forged)))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 100])
def test_paths_are_those_of_the_tree(count: int) -> None:
    hashes = [record_hash(str(n).encode()) for n in range(count)]
    paths = _Paths(hashes)
    for n in range(count):
        assert paths.path(n) == inclusion_path(hashes, n)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(hs.binary(max_size=300))
def test_foreign_bytes_are_no_bundle(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    from ledger.core.keys import generate_key

    path = tmp_path_factory.mktemp("foreign") / "x"
    for content in (data, form.MAGIC + data, form.MAGIC + data + b"\n"):
        path.write_bytes(content)
        found = verify_settlement(path, [log_verifier_key(ORIGIN, generate_key().public)])
        assert found.findings.kept


def test_each_line_is_as_the_published_schemas_say(made: Made, tmp_path: Path) -> None:
    import json

    import jsonschema

    schemas = Path(__file__).parents[2] / "schemas"
    record = jsonschema.Draft202012Validator(json.loads((schemas / "record.schema.json").read_bytes()))
    seen = set()
    lines = bundle(made, tmp_path / "b", request_salt=salts).read_bytes().splitlines()[1:]
    for line in lines:
        value = json.loads(line)
        seen.add(value["line"])
        schema = json.loads((schemas / "settlement" / f"{value['line']}.schema.json").read_bytes())
        jsonschema.Draft202012Validator(schema).validate(value)
        if value["line"] == "record":
            record.validate(value["record"])
    assert seen == {*form.PARTS, "seal"}


def test_a_quorum_counts_for_a_bundle(made: Made, tmp_path: Path) -> None:
    path = bundle(made, tmp_path / "b")
    log = format_vkey(log_verifier_key(ORIGIN, made.key.public))
    witness = format_vkey(
        VerifierKey.of("w.example.com", COSIGNATURE_ED25519, generate_key().public.raw_bytes())
    )
    assert verify_file(path, log).verdict == "sound"
    report = verify_file(path, log, witness_vkeys=[witness], quorum=1)
    assert [each.code for each in report.findings] == ["quorum-missed"]
