"""Audits a log: reads all of it once, believes nothing but the log's verifier key, and names what is wrong.

Checked are: every tile, checkpoint, statement, signature, receipt, issuer's chain, record, and every row of
the tables that are derived from them. The audit goes on after a finding wherever the rest can be judged.

Memory does not grow with the records, but with issuers, documents, roll-up rows (hours times tenants times
deployments) and with how late issuers sent (see ``index``); from a service, by 16 bytes a record.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ledger.audit.batches import check_records, check_root, unpack_block
from ledger.audit.derived import DerivedAudit
from ledger.audit.erasures import ErasureAudit
from ledger.audit.export import ExportSource, audit_export
from ledger.audit.index import SeenIds
from ledger.audit.leaves import LeafAudit
from ledger.audit.report import DEFAULT_LIMIT, AuditReport, Findings, Signed
from ledger.audit.sources import Leaf, Source
from ledger.audit.tables import place
from ledger.audit.tree import Candidates, TreeAudit
from ledger.audit.witnessed import check_quorum, read_witnessed
from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.errors import InvalidError, TallystickError, UnavailableError
from ledger.core.keys import PublicKey
from ledger.core.log_keys import parse_log_keys, public_of_log_key
from ledger.core.merkle import leaf_hash
from ledger.core.note import VerifierKey, parse_vkey
from ledger.core.policy import Policy
from ledger.core.statements import Batch, Erasure

__all__ = ["audit", "parse_log_key"]

# Statements are checked some dozens ahead of records: going back and forth between the two for each leaf
# costs a tenth more, since the records of a batch push all other code and data out of the processor's cache.
_WINDOW_LEAVES = 64
_WINDOW_BYTES = 8 << 20


def audit(
    source: Source | ExportSource,
    log_vkey: str,
    *,
    known_checkpoints: Sequence[bytes] = (),
    issuer_keys: Mapping[str, Collection[PublicKey]] | None = None,
    witness_vkeys: Sequence[str] = (),
    policy: Policy | None = None,
    evidence_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
    limit: int = DEFAULT_LIMIT,
) -> AuditReport:
    """Audit the log of ``source``.

    Args:
        source: a database, a service or an export: see ``open_source``.
        log_vkey: the log's verifier key (signed-note text), or all that it has had, one a line. The only
            thing that is trusted.
        known_checkpoints: signed notes that the auditor has seen before: a log that is shorter was rolled
            back, one with another root was forked.
        issuer_keys: issuer -> keys that the auditor has from the issuer itself; any other key that the log
            names for it is a finding.
        witness_vkeys: keys of witnesses, whose cosignatures are then checked.
        policy: which witnesses must have cosigned the newest checkpoint, or the newest cosigned one that a
            database holds; too few are a finding.
        evidence_only: check what signatures vouch for - leaves, tiles, checkpoints, signatures, receipts,
            chains, record hashes and roots - but not what the records say (form, sums, ids twice) nor the
            tables that are derived from them. More than twice as fast; the report says so.
        progress: called with (leaves done, leaves of the log).
        limit: how many findings to keep; later ones are counted.

    Returns:
        The report. Contradictions in the source never raise.

    Raises:
        InvalidError: ``log_vkey`` or a known checkpoint is malformed or of another log.
        UnavailableError: the source cannot be opened at all.
    """
    begun = time.perf_counter()
    log_keys = parse_log_keys(log_vkey)
    known = [_parse_known(note, log_keys) for note in known_checkpoints]
    witnesses = [parse_vkey(text) for text in witness_vkeys]
    if policy is not None:
        witnesses += [each.key for each in policy.witnesses if each.key not in witnesses]
    findings = Findings(limit)
    if isinstance(source, ExportSource):
        with _busy_memory():
            newest = audit_export(
                source, log_keys, findings, known=known, issuer_keys=issuer_keys, progress=progress
            )
        check_quorum(policy, newest, (), findings)
        return findings.report(source.name, newest, time.perf_counter() - begun)
    with source, _busy_memory():
        newest = _newest_checkpoint(source, log_keys, findings)
        if newest is not None:
            cosigned = read_witnessed(source, log_keys, findings)
            known += [each.checkpoint for each in cosigned]
            check_quorum(policy, newest, cosigned, findings)
            if evidence_only:
                findings.note(
                    "evidence alone was checked, as asked: neither what the records say nor the tables "
                    "derived from them"
                )
            run = _Run(
                source, log_keys, newest.checkpoint, known, witnesses, issuer_keys, evidence_only, findings
            )
            run.read(progress)
    return findings.report(source.name, newest, time.perf_counter() - begun)


def parse_log_key(text: str) -> VerifierKey:
    """The verifier key of a log, from its text; the first one, if it has several.

    Raises:
        InvalidError: it is malformed, or a witness's.
    """
    return parse_log_keys(text)[0]


def _parse_known(note: bytes, log_key: LogKeys) -> Checkpoint:
    try:
        return open_checkpoint(note, log_key)
    except TallystickError as error:
        raise InvalidError(
            f"a known checkpoint does not verify: {error.what}",
            where=error.where,
            remedy="pass only checkpoints that this log's key signed",
            code="bad-known-checkpoint",
        ) from None


def _newest_checkpoint(source: Source, log_keys: Sequence[VerifierKey], findings: Findings) -> Signed | None:
    """The largest checkpoint that verifies. What does not verify is found again when all are checked."""
    newest: Signed | None = None
    try:
        for tried, note in enumerate(source.newest_notes()):
            try:
                checkpoint = open_checkpoint(note, log_keys)
            except TallystickError:
                continue
            if newest is None or checkpoint.size > newest.checkpoint.size:
                newest = Signed(checkpoint, note)
            if tried:  # the head's, and the newest stored one: a database may disagree with itself
                break
    except UnavailableError as error:
        findings.gap("checkpoint", error.what)
    if newest is None:
        findings.add(
            "no-checkpoint",
            "checkpoint",
            f"there is none that {log_keys[0].name} signed",
            "check that the verifier key is this log's; if it is, nothing here was ever vouched for",
        )
        findings.gap(source.name, "without a checkpoint there is nothing to check it against")
    return newest


# Freeing one large block makes glibc serve blocks below its size from the heap from then on, and keep them.
# Otherwise each record block is mapped and unmapped anew, and clearing its pages takes longer than unpacking.
_HEAP_BYTES = 24 << 20


@contextmanager
def _busy_memory() -> Iterator[None]:
    """Prepare for many short-lived large blocks and millions of records, none of which has cycles."""
    bytes(_HEAP_BYTES)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Run:
    """One audit. Owned by the one thread that runs it."""

    def __init__(
        self,
        source: Source,
        log_keys: Sequence[VerifierKey],
        newest: Checkpoint,
        known: Iterable[Checkpoint],
        witnesses: Iterable[VerifierKey],
        issuer_keys: Mapping[str, Collection[PublicKey]] | None,
        evidence_only: bool,
        findings: Findings,
    ) -> None:
        self._source = source
        self._evidence_only = evidence_only
        self._findings = findings
        self._size = newest.size
        self._newest = newest
        for checkpoint in known:
            if checkpoint.size > self._size:
                findings.add(
                    "rolled-back",
                    f"known checkpoint of size {checkpoint.size}",
                    f"the log signed {checkpoint.size} leaves, but this copy ends at {self._size}",
                    "this is an older copy: whatever was logged later is missing from it",
                )
        public = [public_of_log_key(key) for key in log_keys]
        self._tree = TreeAudit(source, log_keys, self._size, findings, known, witnesses)
        self._leaves = LeafAudit(public, log_keys[0].name, self._tree, findings, issuer_keys, self._cell)
        self._derived = DerivedAudit(source, findings) if source.has_tables and not evidence_only else None
        self._erasures = ErasureAudit(findings)
        self._ids = SeenIds()  # where there is no index to compare

    def read(self, progress: Callable[[int, int], None] | None) -> None:
        """Read everything once."""
        try:
            self._read_leaves(progress)
        except UnavailableError as error:
            self._findings.gap(self._source.name, error.what)
            return
        self._tree.close()
        self._erasures.close()
        self._findings.counts.issuers = len(self._leaves.heads)
        if self._tree.root() != self._newest.root:
            self._findings.add(
                "checkpoint-differs",
                f"newest checkpoint, size {self._size}",
                f"signs the root {self._newest.root.hex()}, but the leaves hash to {self._tree.root().hex()}",
                "the leaves were changed after it was signed; keep this copy as evidence",
            )
        if self._derived is not None:
            self._derived.close(self._leaves, self._tree, self._newest)
        self._ids.close(self._findings)

    def _read_leaves(self, progress: Callable[[int, int], None] | None) -> None:
        done = 0
        waiting: list[tuple[Leaf, Batch | None]] = []
        waiting_bytes = 0
        for leaf in self._source.leaves(self._size):
            if not isinstance(leaf.index, int) or not done <= leaf.index < self._size:
                self._findings.add(
                    "leaf-extra",
                    place("statement", leaf.index),
                    f"the newest checkpoint covers {self._size} leaves, and this is none of them",
                    "the ledger never stores a leaf without its checkpoint: it was put in from outside",
                )
                continue
            self._skip_missing(done, leaf.index)
            done = leaf.index + 1
            has_records, batch = self._check_statement(leaf)
            if has_records:
                waiting.append((leaf, batch))
                waiting_bytes += sum(
                    len(each) for each in (leaf.block, leaf.lines) if isinstance(each, bytes)
                )
            if len(waiting) >= _WINDOW_LEAVES or waiting_bytes >= _WINDOW_BYTES or done == self._size:
                for each in waiting:
                    self._check_records(*each)
                waiting.clear()
                waiting_bytes = 0
            if progress is not None:
                progress(done, self._size)
        for each in waiting:
            self._check_records(*each)
        self._skip_missing(done, self._size)

    def _skip_missing(self, done: int, index: int) -> None:
        if done == index:
            return
        last = f" to {index - 1}" if index - done > 1 else ""
        self._findings.add(
            "leaf-missing",
            f"{self._cell(done, 'entry')}{last}",
            f"{index - done} of {self._size} leaves are gone",
            "keep this copy as evidence and restore a good one",
        )
        for each in range(done, index):
            self._tree.add(each, Candidates(None))
            if self._derived is not None:
                self._derived.skip(each)

    def _check_statement(self, leaf: Leaf) -> tuple[bool, Batch | None]:
        """Check all of a leaf but its records.

        Returns:
            Whether it has records to be checked, and what its statement says of them if that can be read.
        """
        self._findings.counts.statements += 1
        for what, why in leaf.missing:
            self._findings.gap(what, why)
        statement = self._leaves.read(leaf)
        if statement is not None:
            self._leaves.check_receipt(leaf, statement)
        computed = leaf_hash(leaf.entry) if isinstance(leaf.entry, bytes) else None
        columns = leaf.columns
        agreed = self._tree.add(
            leaf.index,
            Candidates(computed, columns.leaf_hash, True)
            if columns is not None
            else Candidates(computed, vouched=lambda: self._leaves.vouched(leaf)),
        )
        if statement is None:
            self._leaves.skip(columns, agreed)
            if leaf.block is None and self._derived is not None:
                self._derived.skip(leaf.index)
            return leaf.block is not None, None
        self._leaves.check(leaf, statement, agreed)
        self._leaves.check_columns(leaf, statement)
        if self._derived is not None:
            self._derived.note_act(leaf.index, statement.payload)
        if isinstance(statement.payload, Erasure):
            self._erasures.said(statement.payload, by_log=statement.issuer == self._leaves.origin)
        if not isinstance(statement.payload, Batch):
            return False, None
        self._leaves.check_documents(statement.payload, self._cell(leaf.index, "entry"))
        return True, statement.payload

    def _check_records(self, leaf: Leaf, batch: Batch | None) -> None:
        """Check a batch's records, and what the tables hold of them."""
        if leaf.columns is not None:
            where = place("statement", leaf.index)
            lines = unpack_block(leaf.block, leaf.columns.records_sha256, where, self._findings)
            where += ".records"
        else:
            where, lines = f"records of entry {leaf.index}", leaf.lines
        computed = leaf_hash(leaf.entry) if isinstance(leaf.entry, bytes) else b""
        if self._evidence_only:
            erased = None if lines is None else check_root(lines, batch, where, self._findings)
            if erased is not None:
                self._erasures.found(computed, erased, where)
            return
        facts = None if lines is None else check_records(lines, batch, where, self._findings)
        if facts is not None:
            self._erasures.found(computed, facts.erased, where)
        if self._derived is None:
            if facts is not None:
                self._ids.add(facts.ids)
        elif facts is None:
            self._derived.skip(leaf.index)
        else:
            self._derived.add(leaf.index, facts)

    def _cell(self, index: int, column: str) -> str:
        return place("statement", index, column=column) if self._source.has_tables else f"entry {index}"
