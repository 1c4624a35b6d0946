"""Benchmarks: figures of this machine, as ratios to a limit measured in the same run. `make bench` writes them."""
