"""A month's sample through the real emitter: every report is made and verified, every forgery is named."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reports import holds, run
from benchmarks.sample import write_sample


def test_reports_on_a_sample(tmp_path: Path) -> None:
    """As `make sample-reports`, on fewer records."""
    told = write_sample(tmp_path / "ledger", 600, year=2026, month=10)
    assert told["records"] == 600
    out = tmp_path / "reports"
    out.mkdir()
    lines: list[str] = []
    found = run(tmp_path / "ledger", out, lines.append)
    assert holds(found), "\n".join(lines)
    assert found["changed_record"]["findings"], "the record is named in the export, not only by figures"
    assert found["changed_factor"]["findings"]
