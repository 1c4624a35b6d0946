"""Witnessing: being a witness of others' logs, and asking others to be one of ours (C2SP tlog-witness)."""
