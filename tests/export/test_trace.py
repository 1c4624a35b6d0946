"""Traces: verified in Python and in a real browser; any changed byte is found and named in both."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from ledger.audit.run import parse_log_key
from ledger.audit.trace import verify_trace
from ledger.audit.verify import verify_data
from ledger.core.errors import InvalidError, TallystickError
from ledger.core.keys import generate_key
from ledger.core.note import format_vkey
from ledger.core.records import encode_record, record_hash
from ledger.core.statements import Correction
from ledger.core.trace import Trace, decode_trace, encode_trace
from ledger.export.parquet import ExportSummary, export_parquet
from ledger.export.trace import make_trace, trace_page
from tests.build import START_US
from tests.export.conftest import DAY_US, Ledger

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(export: ExportSummary) -> Path:
    return Path(export.directory)


@pytest.fixture(scope="module")
def vkey(ledger: Ledger) -> str:
    return format_vkey(ledger.sequencer.verifier_key)


@pytest.fixture(scope="module")
def rich(folder: Path, ledger: Ledger) -> Trace:
    """Of a record with factors and a later evaluation of its deployment."""
    return make_trace(folder, next(r.id for *_, r in ledger.records if r.factors is not UNSET))


def test_every_record_can_be_traced(folder: Path, ledger: Ledger, vkey: str) -> None:
    for leaf_index, position, issuer, record in ledger.records[:: len(ledger.records) // 20]:
        traced = verify_trace(decode_trace(encode_trace(make_trace(folder, record.id))), parse_log_key(vkey))
        assert traced.record == record
        assert traced.statement.issuer == issuer
        trace = make_trace(folder, record.id)
        assert (trace.statement.leaf_index, trace.position) == (leaf_index, position)


def test_what_came_later_is_in_it(rich: Trace, vkey: str) -> None:
    traced = verify_trace(rich, parse_log_key(vkey))
    assert traced.factors is not None
    assert [each.payload.evaluator for each in traced.evaluations] == ["tests"]


def test_from_an_export_of_a_part(ledger: Ledger, tmp_path: Path, vkey: str) -> None:
    """The batch over midnight: the export has some of its records, and the hashes of the others."""
    made = export_parquet(
        ledger.store,
        tmp_path / "part",
        log_key=ledger.key,
        from_us=START_US + DAY_US,
        to_us=START_US + 3 * DAY_US,
        every_statement=True,
    )
    traced = 0
    for *_, record in ledger.records:
        if START_US + DAY_US <= record.started_us < START_US + 3 * DAY_US:
            verify_trace(make_trace(Path(made.directory), record.id), parse_log_key(vkey))
            traced += 1
    assert traced == made.records > 0


def test_a_correction_by_its_issuer_is_in_it(ledger: Ledger, tmp_path: Path, vkey: str) -> None:
    _, _, name, record = ledger.records[5]
    issuer = ledger.issuers[name]
    digest = record_hash(encode_record(record)).hex()
    correction = Correction(record=record.id, record_hash=digest, reason="x", carbon_ng=1, **issuer.chain())
    ledger.log(issuer.sign(correction))
    made = export_parquet(ledger.store, tmp_path / "corrected", log_key=ledger.key)
    traced = verify_trace(make_trace(Path(made.directory), record.id), parse_log_key(vkey))
    assert [each.payload.reason for each in traced.corrections] == ["x"]


def test_verify_recognises_it(rich: Trace, vkey: str) -> None:
    report = verify_data(encode_trace(rich), vkey)
    assert (report.verdict, report.kind) == ("sound", "trace")
    assert any("Qwen3-32B" in each for each in report.proves)


def test_any_changed_byte_is_found(rich: Trace, vkey: str) -> None:
    data = encode_trace(rich)
    chance = random.Random(1)
    for _ in range(1500):
        at = chance.randrange(len(data))
        broken = bytearray(data)
        broken[at] ^= 1 << chance.randrange(8)
        report = verify_data(bytes(broken), vkey)
        if report.verdict == "sound":  # white space and spelling of the JSON hold nothing
            assert decode_trace(bytes(broken)) == rich


def test_another_logs_key_is_refused(rich: Trace) -> None:
    from ledger.core.note import ED25519, VerifierKey

    other = VerifierKey.of("log.example.com/tallystick", ED25519, generate_key().public.raw_bytes())
    with pytest.raises(TallystickError):
        verify_trace(rich, other)


def test_parts_that_belong_to_another_record_are_refused(folder: Path, ledger: Ledger, vkey: str) -> None:
    one = make_trace(folder, ledger.records[0][3].id)
    two = make_trace(folder, next(r.id for *_, r in ledger.records if r.factors is not UNSET))
    key = parse_log_key(vkey)
    for name in ("record", "position", "path", "statement", "issuer_key", "deployment", "factors", "later"):
        mixed = msgspec.structs.replace(one, **{name: getattr(two, name)})
        if mixed != one:
            with pytest.raises(TallystickError):
                verify_trace(mixed, key)


def test_unknown_record(folder: Path) -> None:
    with pytest.raises(InvalidError, match="has no record"):
        make_trace(folder, "0199c8a0-0000-7000-8000-0000000000ff")


# --- the page --------------------------------------------------------------------------------------------


def shown(page: bytes, directory: Path) -> tuple[str, str]:
    """Class and words of the verdict that Chromium comes to."""
    assert CHROMIUM is not None
    file = directory / "trace.html"
    file.write_bytes(page)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]
    command += [f"--user-data-dir={directory / 'profile'}", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<p id="verdict" class="([a-z]+)"[^>]*>([^<]*)</p>', dom)
    assert found is not None, dom[:500]
    assert ('<div id="shown" hidden' in dom) is (found[1] == "failed")  # nothing unproven is shown
    return found[1], found[2]


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@needs_browser
def test_a_browser_verifies_it(rich: Trace, vkey: str, tmp_path: Path) -> None:
    assert shown(trace_page(rich, vkey), tmp_path)[0] == "verified"


@needs_browser
def test_a_browser_names_what_was_changed(rich: Trace, vkey: str, tmp_path: Path) -> None:
    def flipped(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    def with_entry(name: str) -> Trace:
        leaf = getattr(rich, name)
        return msgspec.structs.replace(
            rich, **{name: msgspec.structs.replace(leaf, entry=flipped(leaf.entry))}
        )

    longer = rich.checkpoint.replace("\n", "\n1", 1)
    text = rich.record.replace(b'"output_tokens":80', b'"output_tokens":81')
    assert text != rich.record
    cases = {
        "The record is in that batch": msgspec.structs.replace(rich, record=text),
        "The issuer's statement about the batch is in the log": with_entry("statement"),
        "The registration of the issuer's key is in the log": with_entry("issuer_key"),
        "The statement that publishes the deployment is in the log": with_entry("deployment"),
        "The log's key signed the checkpoint": msgspec.structs.replace(rich, checkpoint=longer),
        "A later statement about the record is in the log": msgspec.structs.replace(
            rich, later=(msgspec.structs.replace(rich.later[0], leaf_index=rich.later[0].leaf_index - 1),)
        ),
    }
    for step, trace in cases.items():
        verdict, words = shown(trace_page(trace, vkey), tmp_path)
        assert verdict == "failed", step
        assert step in words.replace("&amp;", "&")


@needs_browser
def test_what_a_record_says_is_never_markup(rich: Trace, vkey: str, tmp_path: Path) -> None:
    evil = msgspec.structs.replace(
        rich, record=b'{"x":"</script><script>document.title=1</script>{{SCRIPT}}"}'
    )
    page = trace_page(evil, vkey)
    assert page.count(b"<script") == 2
    assert shown(page, tmp_path)[0] == "failed"
