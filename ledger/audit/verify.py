"""Verifies one piece of evidence offline: a receipt, statement, proof, checkpoint, record proof or export.

What a file is, is told by its content. The report says in plain words what is proven and what is not; the
log's verifier key is all that is trusted, beside keys that the caller has from issuers and witnesses.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ledger.audit.export import ExportSource
from ledger.audit.record_proof import RecordProof, decode_record_proof
from ledger.audit.report import AuditReport, Finding, Findings, Gap, Signed, Verdict
from ledger.audit.run import audit
from ledger.audit.settlement import is_settlement, proven_by_settlement, verify_settlement
from ledger.audit.trace import verify_trace
from ledger.audit.witnessed import check_quorum
from ledger.core import cose
from ledger.core.checkpoint import Checkpoint, open_checkpoint
from ledger.core.cosignature import verified_cosignatures
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.export_layout import MANIFEST_FILE, MANIFEST_SIGNATURE_FILE, RECORDS_DIR, STATEMENTS_FILE
from ledger.core.keys import PublicKey
from ledger.core.log_keys import parse_log_keys, public_of_log_key
from ledger.core.merkle import root_from_inclusion
from ledger.core.note import MAX_NOTE_BYTES, VerifierKey, parse_note, parse_vkey
from ledger.core.policy import NONE, Policy, cosigned_by, quorum_of
from ledger.core.receipts import Receipt, decode_receipt, verify_receipt
from ledger.core.records import Record, decode_record, record_hash
from ledger.core.statements import Batch, SignedStatement, decode_statement, verify_statement
from ledger.core.tlog_proof import parse_tlog_proof, verify_tlog_proof
from ledger.core.trace import decode_trace

__all__ = ["VerifyReport", "verify_data", "verify_file"]

MAX_EVIDENCE_BYTES = 2 * MAX_NOTE_BYTES + (1 << 20)
"""A tlog-proof with cosignatures is the largest; everything else stays far below."""
_TRACE_MARK_BYTES = 64
"""A trace says what it is at its beginning."""
_PROOF_HEADER = b"c2sp.org/tlog-proof@"
_COSE_SIGN1 = b"\xd2"
_SIGNATURE_LINES = "\n\n\u2014 ".encode()
_DATABASE = b"SQLite format 3\0"
_AUDIT_INSTEAD = "audit a ledger's folder or database instead: `tallystick audit`"
_GET_WHOLE = "get it again from whoever gave it to you, and from the log"


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of verifying one piece of evidence.

    Args:
        verdict: ``sound``, ``refuted`` or ``unknown`` (something needed is missing).
        kind: ``receipt``, ``transparent-statement``, ``statement``, ``tlog-proof``, ``checkpoint``,
            ``record-proof``, ``trace``, ``settlement``, ``export``, or empty if it is none of these.
        source: what was verified.
        proves: what is shown, sentence by sentence; empty unless the verdict is ``sound``.
        findings: what does not hold.
        gaps: what could not be checked, though it belongs to the evidence.
        notes: what the evidence does not show.
        audit: the audit's report, for an export.
        elapsed_s: how long it took.
    """

    verdict: Verdict
    kind: str
    source: str
    proves: tuple[str, ...]
    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    audit: AuditReport | None
    elapsed_s: float


def verify_file(
    path: str | Path,
    log_vkey: str,
    *,
    statement: str | Path | None = None,
    issuer_keys: Collection[PublicKey] = (),
    witness_vkeys: Sequence[str] = (),
    quorum: int = 0,
    policy: Policy | None = None,
) -> VerifyReport:
    """Verify the evidence in a file, or an export's directory.

    Args:
        path: the file or directory.
        log_vkey: the log's verifier key (signed-note text).
        statement: the statement's file, for a receipt or tlog-proof that comes without it.
        issuer_keys: keys that the caller has from issuers; their signatures are then checked too.
        witness_vkeys: keys of witnesses whose cosignatures are checked.
        quorum: how many of them must have cosigned.
        policy: which witnesses must have, instead.

    Raises:
        InvalidError: a key is malformed, a file cannot be read, or the quorum is more than the witnesses.
    """
    begun = time.perf_counter()
    path = Path(path)
    witnesses, policy = _demanded(witness_vkeys, quorum, policy)
    if path.is_dir():
        _check_export(path)
        report = audit(ExportSource(path), log_vkey, policy=policy)
        proves = _proven_by_export(report) if report.verdict == "sound" else ()
        return VerifyReport(
            report.verdict, "export", str(path), proves, report.findings, report.gaps, report.notes, report,
            time.perf_counter() - begun,
        )  # fmt: skip
    if path.is_file() and is_settlement(path):
        return _verify_settlement(path, log_vkey, policy, begun)
    check = _Check(
        parse_log_keys(log_vkey),
        None if statement is None else _read(Path(statement)),
        issuer_keys,
        witnesses,
        policy,
    )
    return _checked(check, _read(path), str(path), begun)


def verify_data(
    data: bytes,
    log_vkey: str,
    *,
    name: str = "evidence",
    statement: bytes | None = None,
    issuer_keys: Collection[PublicKey] = (),
    witness_vkeys: Sequence[str] = (),
    quorum: int = 0,
    policy: Policy | None = None,
) -> VerifyReport:
    """Verify evidence that is in memory; see ``verify_file``."""
    begun = time.perf_counter()
    witnesses, policy = _demanded(witness_vkeys, quorum, policy)
    check = _Check(parse_log_keys(log_vkey), statement, issuer_keys, witnesses, policy)
    return _checked(check, data, name, begun)


def _demanded(
    witness_vkeys: Sequence[str], quorum: int, policy: Policy | None
) -> tuple[list[VerifierKey], Policy | None]:
    """The keys of all witnesses, and as a policy which of them must have cosigned, whatever the evidence."""
    witnesses = [parse_vkey(text.strip()) for text in witness_vkeys]
    if quorum and policy is not None:
        raise InvalidError(
            "is given beside a policy, which has its own",
            where="quorum",
            remedy="pass the one or the other",
            code="bad-parameter",
        )
    if quorum:
        policy = quorum_of(witnesses, quorum)
    if policy is not None:
        witnesses += [each.key for each in policy.witnesses if each.key not in witnesses]
    return witnesses, policy


def _checked(check: _Check, data: bytes, name: str, begun: float) -> VerifyReport:
    try:
        check.run(data)
    except TallystickError as error:
        check.findings.add(
            error.code, error.where or check.kind or name, error.what, error.remedy or _GET_WHOLE
        )
    findings = check.findings
    return VerifyReport(
        verdict=findings.verdict,
        kind=check.kind,
        source=name,
        proves=tuple(check.proves) if findings.verdict == "sound" else (),
        findings=tuple(findings.kept),
        gaps=tuple(findings.gaps),
        notes=tuple(findings.notes),
        audit=None,
        elapsed_s=time.perf_counter() - begun,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}", where=str(path), code="no-such-file"
        ) from None
    if len(data) > MAX_EVIDENCE_BYTES:
        raise InvalidError(
            "is larger than evidence can be", where=str(path), remedy=_AUDIT_INSTEAD, code="too-large"
        )
    if data.startswith(_DATABASE):
        raise InvalidError(
            "is a database, not evidence", where=str(path), remedy=_AUDIT_INSTEAD, code="not-evidence"
        )
    return data


def _check_export(directory: Path) -> None:
    """Refuse a folder that holds nothing of an export: whoever named it is wrong, not who made it."""
    parts = (MANIFEST_FILE, MANIFEST_SIGNATURE_FILE, STATEMENTS_FILE, RECORDS_DIR)
    if not any((directory / part).exists() for part in parts):
        raise InvalidError(
            "is not an export", where=str(directory), remedy=_AUDIT_INSTEAD, code="not-evidence"
        )


def _verify_settlement(path: Path, log_vkey: str, policy: Policy | None, begun: float) -> VerifyReport:
    settled = verify_settlement(path, parse_log_keys(log_vkey))
    findings = settled.findings
    if settled.header is not None and settled.checkpoint is not None:
        check_quorum(policy, Signed(settled.checkpoint, settled.header.checkpoint.encode()), (), findings)
    proves = proven_by_settlement(settled) if findings.verdict == "sound" else ()
    return VerifyReport(
        findings.verdict, "settlement", str(path), proves, tuple(findings.kept), tuple(findings.gaps),
        tuple(findings.notes), None, time.perf_counter() - begun,
    )  # fmt: skip


def _proven_by_export(report: AuditReport) -> tuple[str, ...]:
    checkpoint, counts = report.checkpoint, report.counts
    origin, size = (checkpoint.origin, checkpoint.size) if checkpoint is not None else ("", 0)
    return (
        f"the log {origin} signed this export of {counts.records} records and {counts.statements} statements",
        f"every record is one that its issuer signed, in a statement of the log's tree of {size} leaves",
        "every column repeats what the record or statement says",
    )


class _Check:
    """One verification. Methods raise at the first thing that makes the rest meaningless."""

    def __init__(
        self,
        log_keys: Sequence[VerifierKey],
        statement: bytes | None,
        issuer_keys: Collection[PublicKey],
        witnesses: list[VerifierKey],
        policy: Policy | None,
    ) -> None:
        self.kind = ""
        self.proves: list[str] = []
        self.findings = Findings()
        self._log_keys = log_keys
        self._origin = log_keys[0].name
        self._publics = {key.kid: key for key in map(public_of_log_key, log_keys)}
        self._statement = statement
        self._issuer_keys = {key.kid: key for key in (*issuer_keys, *self._publics.values())}
        self._witnesses = witnesses
        self._policy = policy

    def run(self, data: bytes) -> None:
        """Find out what ``data`` is, and verify it."""
        if data.startswith(_PROOF_HEADER):
            self.kind = "tlog-proof"
            self._tlog_proof(data)
        elif data.startswith(_COSE_SIGN1):
            self.kind = "statement"
            if cose.VDS in cose.decode_sign1(data, where="file").header:
                self.kind = "receipt"
                self._bare_receipt(data)
            else:
                self._transparent(data)
        elif data.startswith(b"{") and b'"tallystick-trace"' in data[:_TRACE_MARK_BYTES]:
            self.kind = "trace"
            self._trace(data)
        elif data.startswith(b"{"):
            self.kind = "record-proof"
            self._record_proof(data)
        elif _SIGNATURE_LINES in data:
            self.kind = "checkpoint"
            self._proven_checkpoint(self._checkpoint(data))
        else:
            self.findings.gap("file", "it is none of the kinds of evidence that ledgers give, or is damaged")

    # --- statements and receipts ---

    def _given_statement(self) -> SignedStatement | None:
        if self._statement is None:
            self.findings.gap(self.kind, "it is about a statement: pass the statement's file too")
            return None
        return decode_statement(self._statement, where="statement")

    def _bare_receipt(self, data: bytes) -> None:
        receipt = decode_receipt(data)
        statement = self._given_statement()
        if statement is None:
            return
        self._receipt(receipt, statement)
        self._without_checkpoint()
        self._issuer(statement)

    def _transparent(self, data: bytes) -> None:
        statement = decode_statement(data)
        if not statement.receipts:
            self.findings.gap("statement", "it has no receipt, so nothing shows that it is in the log")
            return
        self.kind = "transparent-statement"
        for number, each in enumerate(statement.receipts):
            receipt = decode_receipt(each, where=f"receipt {number}")
            if receipt.origin == self._origin:
                self._receipt(receipt, statement, where=f"receipt {number}")
            else:
                self.findings.gap(f"receipt {number}", f"it is by another log, {receipt.origin}")
        self._without_checkpoint()
        self._issuer(statement)

    def _without_checkpoint(self) -> None:
        if self._policy is not None and self._policy.quorum != NONE:
            self.findings.gap("quorum", "receipts carry no cosignatures: get the entry's proof from the log")

    def _receipt(self, receipt: Receipt, statement: SignedStatement, where: str = "receipt") -> None:
        if receipt.origin != self._origin:
            raise CorruptError(
                f"is by {receipt.origin!r}, not by {self._origin!r}", where=where, code="other-log"
            )
        verify_receipt(
            receipt, statement.leaf_hash, self._public(receipt.kid), subject=statement.subject, where=where
        )
        self.proves.append(
            f"the log {receipt.origin} has {_named(statement)} as leaf {receipt.leaf_index} of "
            f"{receipt.tree_size}, registered {_utc(receipt.registered_s)} by its clock"
        )

    def _public(self, kid: bytes) -> PublicKey:
        """The log's key with this thumbprint; the newest, which does not verify it, if it has none."""
        return self._publics.get(kid) or next(iter(self._publics.values()))

    def _issuer(self, statement: SignedStatement) -> None:
        key = self._issuer_keys.get(statement.kid)
        if key is None:
            self.findings.note(
                f"the signature of {statement.issuer} was not checked: its key was not given "
                f"({statement.kid.hex()})"
            )
            return
        verify_statement(statement, key, where="statement signature")
        self.proves.append(f"{statement.issuer} signed it with the key {statement.kid.hex()}")

    # --- proofs ---

    def _tlog_proof(self, data: bytes) -> None:
        proof = parse_tlog_proof(data)
        entry = proof.extra if self._statement is None else None
        statement = (
            decode_statement(entry, where="extra data of the proof") if entry else self._given_statement()
        )
        if statement is None:
            return
        if proof.extra is not None and proof.extra != statement.entry:
            self.findings.gap("extra data of the proof", "nothing vouches for it: it is not the statement")
        checkpoint = verify_tlog_proof(proof, statement.leaf_hash, self._log_keys, self._witnesses)
        self._check_policy(proof.checkpoint_note)
        self._note_unknown(proof.checkpoint_note)
        self.proves.append(f"{_named(statement)} is leaf {proof.index} of the tree below")
        self._proven_checkpoint(checkpoint)
        self._issuer(statement)

    def _checkpoint(self, note: bytes) -> Checkpoint:
        checkpoint = open_checkpoint(note, self._log_keys)
        cosigned = verified_cosignatures(parse_note(note), self._witnesses)
        self._check_policy(note)
        for name, seconds in cosigned:
            self.proves.append(
                f"the witness {name} saw the log grow to it by appending only, {_utc(seconds)}"
            )
        self._note_unknown(note)
        return checkpoint

    def _check_policy(self, note: bytes) -> None:
        """Check that a quorum cosigned, if one is asked for."""
        if self._policy is None:
            return
        names = cosigned_by(parse_note(note), self._policy)
        if not self._policy.satisfied_by(names):
            raise CorruptError(
                f"{len(names)} of the witnesses cosigned, which is not the quorum that is asked for",
                where="checkpoint",
                remedy="ask the log for a checkpoint with more cosignatures",
                code="quorum-missed",
            )
        self.proves.append(f"a quorum of witnesses cosigned it: {', '.join(names) or 'none is asked for'}")

    def _note_unknown(self, note: bytes) -> None:
        parsed = parse_note(note)
        known = {self._origin} | {key.name for key in self._witnesses}
        others = sorted({each.name for each in parsed.signatures} - known)
        if others:
            self.findings.note(f"cosignatures were not checked, for want of keys: {', '.join(others)[:400]}")

    def _proven_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.proves.append(
            f"the log {checkpoint.origin} signed the tree of {checkpoint.size} leaves with root "
            f"{checkpoint.root.hex()}"
        )

    # --- records ---

    def _record_proof(self, data: bytes) -> None:
        proof, as_written = decode_record_proof(data)
        if not as_written:
            self.findings.gap(
                "file",
                "its JSON is spelled as no ledger writes it; the values were checked, the spelling was not",
            )
        statement = decode_statement(proof.statement, where="statement")
        record = self._record(proof, statement)
        receipt = decode_receipt(proof.receipt)
        if receipt.leaf_index != proof.leaf_index:
            raise CorruptError(
                f"is {proof.leaf_index}, but the receipt is for leaf {receipt.leaf_index}",
                where="leaf_index",
                code="bad-record-proof",
            )
        usage = record.usage
        self.proves.append(
            f"record {record.id} ({usage.input_tokens} input, {usage.output_tokens} output tokens) is, to "
            f"the byte, number {proof.position} of the records in {_named(statement)}"
        )
        self._receipt(receipt, statement)
        checkpoint = self._checkpoint(proof.checkpoint)
        if checkpoint.size == receipt.tree_size:
            root = verify_receipt(receipt, statement.leaf_hash, self._public(receipt.kid))
            if root != checkpoint.root:
                raise CorruptError(
                    "is of the receipt's size, but of another tree", where="checkpoint", code="forked"
                )
        self._proven_checkpoint(checkpoint)
        self._issuer(statement)

    def _trace(self, data: bytes) -> None:
        trace = decode_trace(data)
        traced = verify_trace(trace, self._log_keys)
        self._check_policy(trace.checkpoint.encode())
        usage, deployment = traced.record.usage, traced.deployment
        self.proves.append(
            f"record {traced.record.id} ({usage.input_tokens} input, {usage.output_tokens} output tokens) "
            f"is, to the byte, in {_named(traced.statement)}, which the log has and the issuer signed"
        )
        self.proves.append(
            f"it names the model {deployment.model} on {deployment.engine}, as published in the log"
        )
        for later in (*traced.corrections, *traced.evaluations):
            self.proves.append(f"later: {_named(later)}")
        self._proven_checkpoint(traced.checkpoint)

    def _record(self, proof: RecordProof, statement: SignedStatement) -> Record:
        batch = statement.payload
        if not isinstance(batch, Batch) or statement.receipts:
            raise CorruptError("is not a bare batch statement", where="statement", code="bad-record-proof")
        try:
            root = root_from_inclusion(
                record_hash(proof.record), proof.position, batch.count, list(proof.path)
            )
        except TallystickError as error:
            raise CorruptError(error.what, where="path", code="bad-record-proof") from None
        if root.hex() != batch.root:
            raise CorruptError(
                "do not lead to the root that the issuer signed: record, position or path was changed",
                where="record, position, path",
                code="bad-record-proof",
            )
        return decode_record(proof.record)


def _named(statement: SignedStatement) -> str:
    return f"the {statement.kind} statement {statement.payload.seq} of {statement.issuer}"


def _utc(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return f"second {seconds}"
