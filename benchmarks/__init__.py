"""Benchmarks: figures of this machine, as ratios to a limit measured beside them. `make bench` runs them."""
