"""A ledger and its export, shared by the tests of costs."""

from __future__ import annotations

from random import Random

import pytest

from ledger.cost.rating import Rater
from tests.cost.logged import NEW, OLD, Logged, log_and_export, random_records


@pytest.fixture(scope="session")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """1,200 records over five days, rated by a book that another one replaces on the fourth."""
    records = random_records(Random(1), 1200, Rater([OLD, NEW]))
    batches = [records[at : at + 400] for at in range(0, 1200, 400)]
    return log_and_export(tmp_path_factory.mktemp("costs"), batches, [OLD, NEW])
