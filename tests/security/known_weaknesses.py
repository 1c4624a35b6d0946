"""Holds a lock file against known weaknesses: ``make security``.

Online, pip-audit asks the package index. Where that cannot be reached, name a copy of the PyPA advisory
database (github.com/pypa/advisory-database, its folder ``vulns``) with ``--advisories``: the same data.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    """Versions by normalised name."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in _PIN.findall(lock)}


def weaknesses(found: dict[str, str], advisories: Path) -> list[str]:
    """What is known about these versions."""
    known = []
    for name, version in sorted(found.items()):
        for path in sorted((advisories / name).glob("*.yaml")):
            advisory = yaml.safe_load(path.read_text(encoding="utf-8"))
            if "withdrawn" not in advisory and affects(advisory, name, version):
                known.append(f"{name} {version}: {advisory['id']} {', '.join(advisory.get('aliases', ()))}")
    return known


def affects(advisory: dict[str, Any], name: str, version: str) -> bool:
    """Whether an OSV advisory is about this version."""
    for affected in advisory.get("affected", ()):
        package = affected.get("package", {})
        if re.sub(r"[-_.]+", "-", package.get("name", "")).lower() != name:
            continue
        if version in affected.get("versions", ()):
            return True
        if any(
            _within(each.get("events", ()), version)
            for each in affected.get("ranges", ())
            if each["type"] == "ECOSYSTEM"
        ):
            return True
    return False


def _within(events: Any, version: str) -> bool:
    inside = False
    for event in events:
        try:
            if "introduced" in event and (
                event["introduced"] == "0" or Version(version) >= Version(event["introduced"])
            ):
                inside = True
            if "fixed" in event and Version(version) >= Version(event["fixed"]):
                inside = False
            if "last_affected" in event and Version(version) > Version(event["last_affected"]):
                inside = False
        except InvalidVersion:
            continue
    return inside


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("lock", type=Path)
    parser.add_argument("--advisories", type=Path, help="folder `vulns` of the PyPA advisory database")
    parser.add_argument("--offline", action="store_true", help="only see that every pin could be looked up")
    arguments = parser.parse_args()
    found = pins(arguments.lock.read_text(encoding="utf-8"))
    if arguments.advisories is not None:
        known = weaknesses(found, arguments.advisories)
        print("\n".join(known) or f"nothing is known against {len(found)} packages")
        return bool(known)
    options = ["--requirement", str(arguments.lock), "--disable-pip", "--no-deps", "--require-hashes"]
    if arguments.offline:
        options.append("--dry-run")
    return subprocess.run([sys.executable, "-m", "pip_audit", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
