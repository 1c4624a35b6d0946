"""``python -m ledger.schemas [DIRECTORY]``: write the published contract, by default into ``schemas/``."""

from __future__ import annotations

import sys
from pathlib import Path

from ledger.schemas import write_contract


def main(arguments: list[str]) -> int:
    """Write the contract and say what changed."""
    if len(arguments) > 1 or any(each.startswith("-") for each in arguments):
        print("usage: python -m ledger.schemas [DIRECTORY]", file=sys.stderr)
        return 2
    directory = Path(arguments[0] if arguments else "schemas")
    directory.mkdir(parents=True, exist_ok=True)
    for path in write_contract(directory):
        print(directory / path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
