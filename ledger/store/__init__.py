"""The ledger: tables, the appending sequencer, queries. SQLite embedded, PostgreSQL for many machines."""

from ledger.store.append import Registration, Sequencer
from ledger.store.engine import Store, migrate, open_store
from ledger.store.prepare import Limits, Prepared, prepare_statement

__all__ = [
    "Limits",
    "Prepared",
    "Registration",
    "Sequencer",
    "Store",
    "migrate",
    "open_store",
    "prepare_statement",
]
