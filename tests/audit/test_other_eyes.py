"""A log whose batches the native part looked at when they came, audited by Python alone, and the reverse."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ledger import native
from tests.audit.conftest import write_everything
from tests.fuzz.targets_native import python_alone

pytestmark = pytest.mark.skipif(native.parsing is None, reason="the native part is not built")


@pytest.mark.parametrize("natively", [True, False])
def test_what_one_takes_in_the_other_finds_sound(tmp_path: Path, natively: bool) -> None:
    with contextlib.nullcontext() if natively else python_alone():
        log = write_everything(tmp_path / "ledger.db")
    with python_alone() if natively else contextlib.nullcontext():
        report = log.audit(log.path)
    assert (report.verdict, report.findings) == ("sound", ())
    assert report.counts.records > 10
