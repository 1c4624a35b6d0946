"""Holds what is gone against what the log says was erased: nothing goes without a word.

The bytes of a record may be gone if the log's own key signed an ``erasure`` statement that names its batch
and its position. Then its hash stands in for it (``core.erased``), and every other proof goes on as before.
What an issuer says about erasing is about its own copies: it excuses nothing here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from ledger.audit.report import Findings
from ledger.core.statements import Erasure

__all__ = ["ErasureAudit"]

_MAX_RULES = 20
"""Rules that the report names one by one."""
_SILENT = "find out who removed them; restore them from a copy that has them, as their hashes allow"


class ErasureAudit:
    """What is gone and what was said, as far as the log was read. Owned by the one thread that audits.

    Memory: 8 bytes a batch, and the positions of erased records.

    Args:
        findings: where contradictions go.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._said: dict[bytes, set[int]] = {}
        self._rules: Counter[str] = Counter()
        self._statements = 0
        self._others = 0
        self._gone: dict[bytes, tuple[str, frozenset[int]]] = {}
        self._whole = array("Q")  # beginnings of the hashes of batches whose records are all there

    def said(self, payload: Erasure, *, by_log: bool) -> None:
        """Note an ``erasure`` statement, by the log or by an issuer."""
        if not by_log:
            self._others += 1
            return
        positions = self._said.setdefault(bytes.fromhex(payload.statement), set())
        self._rules[payload.rule] += len(set(payload.positions) - positions)
        positions.update(payload.positions)
        self._statements += 1

    def found(self, leaf_hash: bytes, gone: Iterable[int], where: str) -> None:
        """Note which records of a batch are gone, once all of its lines were read."""
        positions = frozenset(gone)
        if positions:
            self._gone[leaf_hash] = (where, positions)
        else:
            self._whole.append(_beginning(leaf_hash))

    def close(self) -> None:
        """Compare, once all leaves were read."""
        for leaf_hash, (where, positions) in self._gone.items():
            said = self._said.get(leaf_hash, set())
            if silent := positions - said:
                self._findings.add(
                    "erased-silently",
                    f"{where}[{min(silent)}]",
                    f"the bytes of {len(silent)} records are gone, and no erasure statement says so",
                    _SILENT,
                )
        whole = sorted(self._whole)
        for leaf_hash, said in self._said.items():
            where, positions = self._gone.get(leaf_hash, ("", frozenset[int]()))
            at = bisect_left(whole, _beginning(leaf_hash))
            if where and (left := said - positions):
                self._not_erased(f"{where}[{min(left)}]", len(left))
            elif at < len(whole) and whole[at] == _beginning(leaf_hash):
                self._not_erased(f"records of statement {leaf_hash.hex()}", len(said))
        if self._statements:
            shown = [
                f"{count} under the rule {rule!r}" for rule, count in self._rules.most_common(_MAX_RULES)
            ]
            shown += ["and others"] if len(self._rules) > _MAX_RULES else []
            self._findings.note(
                f"{self._rules.total()} records were erased by {self._statements} erasure statements of the "
                f"log: {'; '.join(shown)}. Their hashes are there, so that all other proofs hold"
            )
        if self._others:
            self._findings.note(
                f"{self._others} erasure statements are issuers': about copies of their own, not this log's"
            )

    def _not_erased(self, where: str, count: int) -> None:
        self._findings.add(
            "not-erased",
            where,
            f"{count} records are still there, though the log says that they were erased",
            "erase them: this copy was restored from before, or was never changed",
        )


def _beginning(leaf_hash: bytes) -> int:
    return int.from_bytes(leaf_hash[:8], "big")
