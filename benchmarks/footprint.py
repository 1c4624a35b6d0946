"""What adopting the recorder costs a serving image: import time and installed size of the base package."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

_IMPORT = "import time; t = time.perf_counter(); import ledger.emit; print(time.perf_counter() - t)"
_RUNS = 9


def _closure(name: str, seen: dict[str, int]) -> None:
    """Installed bytes of ``name`` and all it needs, without extras."""
    if name in seen:
        return
    files = distribution(name).files or []
    seen[name] = sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
    for text in requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            _closure(requirement.name, seen)


def run() -> dict[str, Any]:
    """Median import time in a new process, and megabytes of files."""
    times = []
    with tempfile.TemporaryDirectory() as elsewhere:
        # As an installed package is imported: compiled once, before anybody waits for it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = elsewhere
        for _ in range(1 + _RUNS):
            done = subprocess.run(
                [sys.executable, "-c", _IMPORT],
                cwd=elsewhere,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            times.append(float(done.stdout))
        del times[0]
    sizes: dict[str, int] = {}
    for text in requires("tallystick") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            _closure(requirement.name, sizes)
    root = Path(__file__).resolve().parent.parent
    sizes["tallystick"] = sum(
        f.stat().st_size
        for top in ("ledger", "cli")
        for kind in ("*.py", "*.pyi", "*.so")
        for f in (root / top).rglob(kind)
    )
    return {"import_ms": statistics.median(times) * 1000, "install_mb": sum(sizes.values()) / 1e6} | {
        f"{name} (kB)": size // 1000 for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    }


if __name__ == "__main__":
    for figure, value in run().items():
        print(f"{figure:28} {value:12.1f}")
