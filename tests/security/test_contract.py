"""The OpenAPI document describes every answer: some calls of each; ``make schemathesis`` makes more."""

from __future__ import annotations

from pathlib import Path

import pytest

contract = pytest.importorskip("tests.security.contract")


@pytest.mark.slow
def test_no_server_error_and_no_undocumented_answer(tmp_path: Path) -> None:
    with contract.running(tmp_path / "ledger-data") as (url, keys):
        outcome = contract.fuzz(url, keys, examples=3, number=1)
    assert outcome.operations >= 40
    assert outcome.calls >= outcome.operations * 3
    assert outcome.statuses[200] > 10
    assert outcome.failures == []
