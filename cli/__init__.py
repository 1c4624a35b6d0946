"""The `tallystick` command: each command calls one function of `ledger`."""
