"""The same targets under ``atheris`` (libFuzzer), which follows code coverage.

``pip install atheris``, then ``python -m tests.fuzz.guided TARGET [libFuzzer options, as -runs=100000]``.
It is not a dependency: it exists for few versions of Python.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Hand one target to libFuzzer, with its seeds; does not return."""
    import atheris

    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["ledger"]):
        from tests.fuzz.run import CPU_LIMIT_S, CRASHES, load_targets

        targets, seeds = load_targets()
    target = targets[name]
    CRASHES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds[name]):
            (Path(folder) / str(number)).write_bytes(seed)
        limits = [f"-timeout={CPU_LIMIT_S:.0f}", "-rss_limit_mb=1024", "-max_len=131072"]
        place = f"-artifact_prefix={CRASHES}/{name}-"
        atheris.Setup([sys.argv[0], folder, *limits, place, *options], lambda data: target(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
