"""On the path of child processes where the tests run on PostgreSQL: they open the same databases."""

import os
import sys
from pathlib import Path

if os.environ.get("TEST_POSTGRES_URI") and os.environ.get("TEST_POSTGRES_DIVERTED") != str(os.getpid()):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.databases import divert

    divert()
