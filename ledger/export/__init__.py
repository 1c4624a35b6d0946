"""Exports of a ledger: Parquet with proofs, and reports made from it."""
