"""Computes the derived tables again while the leaves pass, and compares them row by row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from typing import Any

import msgspec
from msgspec import UNSET

from ledger.audit.batches import BatchFacts, Key
from ledger.audit.index import IndexAudit
from ledger.audit.leaves import LeafAudit
from ledger.audit.report import Findings
from ledger.audit.settings import SettingsAudit
from ledger.audit.sources import Row, Source
from ledger.audit.tables import compare_rows, place, same, shown
from ledger.audit.tree import TreeAudit
from ledger.core.checkpoint import Checkpoint
from ledger.core.errors import UnavailableError
from ledger.core.statements import Admin, IssuerKey, Payload

__all__ = ["DerivedAudit"]

_PAGE_ROWS = 1_024
_MAX_SHOWN = 10
_MAX_PENDING = 4_096
"""Batches' sums that wait to be added: columns are added faster than rows."""


class DerivedAudit:
    """What the tables must hold, as far as the leaves have passed. Owned by the one thread that audits.

    Args:
        source: the database.
        findings: where contradictions go.
    """

    def __init__(self, source: Source, findings: Findings) -> None:
        self._source = source
        self._findings = findings
        self._rollups: dict[Key, list[int]] = {}
        self._pending: defaultdict[Key, list[list[int]]] = defaultdict(list)
        self._pending_count = 0
        self._acts: dict[Any, tuple[str, str]] = {}  # what was done, and the SHA-256 of its particulars
        self._settings = SettingsAudit()
        self._granted: dict[Any, tuple[Any, Any, Any]] = {}  # API key -> scopes, tenant, token SHA-256
        self._withdrawn: set[Any] = set()  # API keys
        self._damaged: set[int] = set()  # leaves whose records could not be read
        self._slices = _Slices(source.rows("batch_slice"), findings)
        self._index: IndexAudit | None = None
        try:
            self._index = IndexAudit(source.open_index, findings)
        except UnavailableError as error:
            findings.gap("record_index", error.what)

    def add(self, leaf_index: int, facts: BatchFacts) -> None:
        """Add what follows from one batch's records."""
        if self._index is not None:
            try:
                self._index.add(leaf_index, facts.ids, facts.positions)
            except UnavailableError as error:
                self._findings.gap("record_index", error.what)
                self._index = None
        self._slices.check(leaf_index, facts)
        pending = self._pending
        for key, sums in facts.rollups.items():
            pending[key].append(sums)
        self._pending_count += len(facts.rollups)
        if self._pending_count >= _MAX_PENDING:
            self._add_pending()

    def _add_pending(self) -> None:
        for key, parts in self._pending.items():
            if key in self._rollups:
                parts.append(self._rollups[key])
            self._rollups[key] = list(map(sum, zip(*parts, strict=True)))
        self._pending.clear()
        self._pending_count = 0

    def note_act(self, leaf_index: int, payload: Payload) -> None:
        """Note a statement if it is an administrator's act, whose particulars are in a table."""
        if isinstance(payload, Admin):
            self._acts[leaf_index] = payload.action, payload.detail
        elif isinstance(payload, IssuerKey):
            if payload.detail is UNSET:  # the log's own key, or a log of before they said it
                self._settings.untold.add(payload.issuer)
            else:
                self._acts[leaf_index] = f"issuer-key.{payload.action}", payload.detail

    def skip(self, leaf_index: int) -> None:
        """Note that a leaf's records cannot be read: what is derived from them cannot be judged."""
        self._damaged.add(leaf_index)

    def close(self, leaves: LeafAudit, tree: TreeAudit, newest: Checkpoint) -> None:
        """Compare what is left, once all leaves have passed."""
        self._add_pending()
        self._slices.close(self._damaged)
        with self._reading("record_index"):
            if self._index is not None:
                self._index.close(self._damaged)
        for table, expected in leaves.expected_rows().items():
            self._compare(table, expected)
        self._compare(
            "rollup",
            {key: (*key, f"[{','.join(map(str, sums))}]") for key, sums in self._rollups.items()},
        )
        with self._reading("log_head"):
            self._compare_head(leaves.origin, tree, newest)
        with self._reading("admin_act"):
            self._check_acts()
        with self._reading("api_key"):
            self._check_api_keys()
        for table, expected in self._settings.expected.items():
            if table in self._settings.undecided:
                self._findings.gap(table, "the particulars of an act that set it are gone or changed")
                continue
            with self._reading(table):
                compare_rows(self._findings, table, self._told(table), expected)
        if self._settings.uninvited:
            names = ", ".join(sorted(self._settings.uninvited)[:10])
            self._findings.note(f"keys were enrolled by invitations that no act in the log made: {names}")
        for where in self._source.unexpected():
            self._findings.gap(where, "this auditor does not know it; use the one of the ledger's version")

    def _told(self, table: str) -> Iterator[Row]:
        """The rows of a table of settings, but those that no statement could have told of."""
        for row in self._source.settings(table):
            if table == "issuer_tenant" and row[0] in self._settings.untold:
                self._findings.gap(
                    table, f"the statements that made {row[0]} an issuer do not name its tenant"
                )
            else:
                yield row

    def _compare(self, table: str, expected: dict[Row, Row]) -> None:
        if table == "rollup" and self._damaged:
            self._findings.gap(
                table, f"the records of {len(self._damaged)} leaves cannot be read, so sums cannot be judged"
            )
            return
        with self._reading(table):
            compare_rows(self._findings, table, self._source.rows(table), expected)

    def _compare_head(self, origin: str, tree: TreeAudit, newest: Checkpoint) -> None:
        rows = list(self._source.rows("log_head"))
        note = tree.newest_note
        if note is None and rows:  # that none is stored is a finding already; this one was verified
            note = rows[0][-1]
        expected: dict[Row, Row] = {(1,): (1, origin, newest.size, newest.root, note)}
        compare_rows(self._findings, "log_head", rows, expected)

    def _check_acts(self) -> None:
        """Particulars of acts: the log's key signed their SHA-256. What they say is looked at later."""
        for leaf_index, detail in self._source.rows("admin_act"):
            self._findings.counts.rows += 1
            act = self._acts.pop(leaf_index, None)
            where = place("admin_act", leaf_index)
            if act is None:
                self._findings.add("row-extra", where, "nothing in the log leads to this row")
                continue
            action, digest = act
            if not isinstance(detail, bytes) or sha256(detail).hexdigest() != digest:
                self._findings.add(
                    "row-differs", f"{where}.detail", f"is not what the log's key signed: {digest}"
                )
                self._settings.lost(action)
            else:
                self._note_key(detail)
                self._settings.said(action, detail)
        for leaf_index, (action, _) in self._acts.items():
            self._settings.lost(action)
            self._findings.add(
                "row-missing",
                place("admin_act", leaf_index),
                "the particulars of this act are gone: what was done can no longer be told",
            )

    def _note_key(self, detail: bytes) -> None:
        try:
            said = msgspec.json.decode(detail)
            if said.get("key") is not None:
                self._granted[said["key"]] = (said["scopes"], said.get("tenant"), said["token_sha256"])
            if said.get("revoked_key") is not None:
                self._withdrawn.add(said["revoked_key"])
        except (msgspec.DecodeError, AttributeError, KeyError, TypeError, UnicodeError):
            return  # signed as it is: an act of a later version

    def _check_api_keys(self) -> None:
        """API keys carry a digest over themselves, and the acts that made and revoked each say what holds."""
        unknown = []
        missing = set(self._granted) - self._withdrawn  # only revoked ones are ever deleted
        for row in self._source.rows("api_key"):
            self._findings.counts.rows += 1
            *values, tenant, digest = row
            values += [] if tenant is None else [tenant]
            lines = ["" if v is None else v.hex() if isinstance(v, bytes) else str(v) for v in values]
            right = sha256("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")).digest()
            if not same(digest, right):
                self._findings.add(
                    "row-differs",
                    place("api_key", row[0]),
                    f"check_sha256 is {shown(digest)}, but the other columns hash to {shown(right)}",
                    "revoke the key and make another: its scopes or token may not be what was granted",
                )
            key, token, scopes, revoked = row[0], row[1], row[2], row[5]
            granted = self._granted.get(key)
            missing.discard(key)
            if revoked is None and key in self._withdrawn:
                self._findings.add(
                    "row-differs",
                    place("api_key", key, column="revoked_s"),
                    "is empty, but the log says that the key was revoked",
                    "revoke the key again, and find out who changed the database",
                )
            if granted is None:
                unknown += [shown(key)] if revoked is None else []
            elif granted != (scopes, tenant, token.hex() if isinstance(token, bytes) else token):
                self._findings.add(
                    "row-differs",
                    place("api_key", key),
                    "scopes, tenant or token are not those that the log says were granted",
                    "revoke the key, and find out who changed the database",
                )
        for key in sorted(map(str, missing)):
            self._findings.add(
                "row-missing",
                place("api_key", key),
                "the log says that this key was granted, and nothing that it was revoked",
                "find out who changed the database, and make another key",
            )
        if unknown:
            self._findings.note(
                f"API keys in force that no act in the log granted ({len(unknown)}): "
                f"{', '.join(unknown[:_MAX_SHOWN])}; ask who made them"
            )

    @contextmanager
    def _reading(self, table: str) -> Iterator[None]:
        try:
            yield
        except UnavailableError as error:
            self._findings.gap(table, error.what)


class _Slices:
    """Compares ``batch_slice`` leaf by leaf, as both come in the order of the log."""

    def __init__(self, rows: Iterator[Row], findings: Findings) -> None:
        self._rows = rows
        self._findings = findings
        self._extra: list[Row] = []  # rows of leaves without records, so far
        self._page: list[Row] = []
        self._at = 0

    def check(self, leaf_index: int, facts: BatchFacts) -> None:
        """Compare the rows of one batch."""
        slices: defaultdict[Row, int] = defaultdict(int)
        for (_, tenant, deployment), sums in facts.rollups.items():
            slices[tenant, deployment] += sums[0]
        wanted = [(leaf_index, *key, count) for key, count in sorted(slices.items())]
        if self._passed(wanted):
            self._findings.counts.rows += len(wanted)
            return
        rows = self._up_to(leaf_index)
        if rows == wanted and all([type(row[3]) is int for row in rows]):  # noqa: C419 - a third faster
            self._findings.counts.rows += len(rows)
            return
        self._extra += [row for row in rows if row[0] != leaf_index]
        rows = [row for row in rows if row[0] == leaf_index]
        compare_rows(self._findings, "batch_slice", rows, {row[:3]: row for row in wanted})

    def close(self, damaged: set[int]) -> None:
        """Report the rows that belong to no batch."""
        while self._page or self._turn():
            self._extra += self._page[self._at :]
            self._page = []
        compare_rows(self._findings, "batch_slice", self._extra, {}, undecided=damaged)

    def _passed(self, wanted: list[Row]) -> bool:
        """Go past a leaf's rows if they are those that come next on this page, as they nearly always are."""
        if not wanted:  # all of it was erased
            return False
        page, end = self._page, self._at + len(wanted)
        rows = page[self._at : end]
        if rows != wanted or end == len(page):  # then more of them may follow
            return False
        following = page[end][0]
        if type(following) is not int or following <= wanted[-1][0]:
            return False
        if not all([type(row[0]) is type(row[3]) is int for row in rows]):  # noqa: C419 - a third faster
            return False
        self._at = end
        return True

    def _up_to(self, leaf_index: int) -> list[Row]:
        """The next rows, up to those of this leaf."""
        rows: list[Row] = []
        while self._at < len(self._page) or self._turn():
            page, begin = self._page, self._at
            at = begin
            while at < len(page) and type(page[at][0]) is int and page[at][0] <= leaf_index:
                at += 1
            rows += page[begin:at]
            self._at = at
            if at < len(page):
                break
        return rows

    def _turn(self) -> bool:
        """Read the next page; False at the end."""
        try:
            self._page = list(islice(self._rows, _PAGE_ROWS))
        except UnavailableError as error:
            self._findings.gap("batch_slice", error.what)
            self._page = []
        self._at = 0
        return bool(self._page)
