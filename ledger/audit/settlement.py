"""Verifies a settlement bundle with the log's key alone, line by line, and names whatever does not hold.

Memory grows with statements, corrections and totals, not with records. What is checked:

    log key -> checkpoint -> every statement -> issuers' keys (the log's word) -> batches' signatures
    batch root -> every record -> sums by day and model, with the corrections that count
    log key -> seal -> every byte of every part
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

import msgspec
from msgspec import UNSET

from ledger.audit.report import Findings
from ledger.audit.settled import Settled, SettledBatch, SettledRecord, proven_by_settlement
from ledger.core import settlement as form
from ledger.core.checkpoint import Checkpoint, open_checkpoint
from ledger.core.corrections import restate
from ledger.core.cose import decode_cbor
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.core.log_keys import public_of_log_key
from ledger.core.merkle import root_from_inclusion
from ledger.core.note import VerifierKey, format_vkey
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.core.records import decode_record, document_digest, record_hash
from ledger.core.statements import (
    Batch,
    Correction,
    DeploymentStatement,
    FactorsStatement,
    IssuerKey,
    SignedStatement,
    decode_statement,
    verify_statement,
)

__all__ = [
    "Settled",
    "SettledBatch",
    "SettledRecord",
    "is_settlement",
    "proven_by_settlement",
    "verify_settlement",
]

_KEEP = "keep the file as evidence, and get the bundle again"
_MAX_MESSAGES = 100
_Wanted = TypeVar("_Wanted")


def is_settlement(path: Path) -> bool:
    """Whether the file says at its beginning that it is a settlement bundle."""
    with path.open("rb") as file:
        return file.read(len(form.MAGIC)) == form.MAGIC


def verify_settlement(
    path: Path,
    log_keys: Sequence[VerifierKey],
    *,
    on_record: Callable[[SettledRecord], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Settled:
    """Verify the bundle in ``path``.

    Args:
        path: the file.
        log_keys: the only thing that is trusted: the log's verifier key, or all that it has had.
        on_record: called with each record that was verified.
        progress: called with (bytes read, bytes of the file).

    Raises:
        InvalidError: the file cannot be read, or is too large. Whatever is wrong in it is a finding instead.
    """
    check = _Check(log_keys, on_record)
    try:
        size = path.stat().st_size
        if size > form.MAX_BUNDLE_BYTES:
            raise InvalidError(
                f"has more than {form.MAX_BUNDLE_BYTES} bytes", where=str(path), code="too-large"
            )
        with path.open("rb") as file:
            check.run(file, None if progress is None else lambda done: progress(done, size))
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}", where=str(path), code="no-such-file"
        ) from None
    return check.settled()


class _Check:
    """One verification. Each line is judged by itself as far as that goes, so that many faults are named."""

    def __init__(
        self, log_keys: Sequence[VerifierKey], on_record: Callable[[SettledRecord], None] | None
    ) -> None:
        self._log_keys = log_keys
        self._origin = log_keys[0].name
        self._publics = {key.kid: key for key in map(public_of_log_key, log_keys)}
        self._on_record = on_record
        self._findings = Findings(_MAX_MESSAGES)
        self._digests = form.Digests()
        self._sums = form.Sums()
        self._header: form.SettlementHeader | None = None
        self._checkpoint: Checkpoint | None = None
        self._keys: dict[tuple[str, bytes], PublicKey] = {}
        self._used: set[tuple[str, str]] = set()
        self._models: dict[str, str] = {}
        self._factors: set[str] = set()
        self._batches: dict[int, SettledBatch] = {}
        self._corrections: dict[tuple[str, str, str], list[tuple[int, Correction]]] = {}
        self._totals: list[form.SettlementTotal] = []
        self._ids: set[str] = set()
        self._last: tuple[int, int] = (-1, -1)
        self._last_leaf = -1
        self._sealed: form.SettlementContents | None = None
        self._part = 0
        self._part_damaged = False
        self._corrected = self._opened = 0

    def settled(self) -> Settled:
        """What was found."""
        return Settled(
            header=self._header,
            checkpoint=self._checkpoint,
            batches=tuple(each for _, each in sorted(self._batches.items())),
            totals=tuple(self._totals),
            records=len(self._ids),
            corrected_records=self._corrected,
            opened=self._opened,
            findings=self._findings,
        )

    def run(self, file: IO[bytes], progress: Callable[[int], None] | None) -> None:
        """Read the file once."""
        if file.read(len(form.MAGIC)) != form.MAGIC:
            self._findings.add(
                "bad-settlement", "line 1", "is not the first line of a settlement bundle", _KEEP
            )
            return
        for number, data in enumerate(_lines(file), 2):
            if progress is not None and number % 4096 == 0:
                progress(file.tell())
            where = f"line {number}"
            try:
                if self._sealed is not None:
                    raise CorruptError("comes after the seal", code="bad-settlement")
                if not data.endswith(b"\n"):
                    raise CorruptError("is cut off, or longer than a line can be", code="bad-settlement")
                self._line(data, where)
            except TallystickError as error:
                self._part_damaged = True
                place = f"{where}, {error.where}" if error.where and error.where != where else where
                self._findings.add(error.code, place, error.what, error.remedy or _KEEP)
        self._finish()

    # --- lines ---

    def _line(self, data: bytes, where: str) -> None:
        try:
            line = form.decode_line(data[:-1], where=where)
        except TallystickError:
            # Told by the part that it must belong to; its bytes count there all the same.
            self._digests.add(form.PARTS[min(self._part, len(form.PARTS) - 1)], data)
            raise
        if isinstance(line, form.Seal):
            self._seal(line, where)
            return
        part = str(line.__struct_config__.tag)
        at = form.PARTS.index(part)
        self._digests.add(part, data)
        if at < self._part or (at == 0) is (self._header is not None):
            raise CorruptError(f"a {part} line is out of its place", code="bad-settlement")
        self._part = at
        match line:
            case form.SettlementHeader():
                self._take_header(line)
            case form.SettlementLeaf():
                self._leaf(line)
            case form.SettlementRecord():
                self._record(line)
            case form.SettlementTotal():
                if len(self._totals) == form.MAX_TOTALS:
                    raise InvalidError("there are too many totals", code="too-large")
                self._totals.append(line)

    def _take_header(self, line: form.SettlementHeader) -> None:
        self._header = line
        if line.origin != self._origin:
            raise CorruptError(f"is about the log {line.origin!r}, not {self._origin!r}", code="other-log")
        self._checkpoint = open_checkpoint(line.checkpoint.encode(), self._log_keys)
        if line.log_key not in map(format_vkey, self._log_keys):
            raise CorruptError("names another key than the log's", where="log_key", code="other-key")
        if line.from_us is not UNSET and line.to_us is not UNSET and line.from_us >= line.to_us:
            raise CorruptError("the period is empty", where="period", code="bad-settlement")

    # --- statements ---

    def _leaf(self, line: form.SettlementLeaf) -> None:
        if len(self._batches) + len(self._models) + len(self._keys) > form.MAX_LEAVES:
            raise InvalidError("there are too many statements", code="too-large")
        place = f"leaf {line.leaf_index}"
        if line.leaf_index <= self._last_leaf:
            raise CorruptError("leaves are not in the order of the log", where=place, code="bad-settlement")
        self._last_leaf = line.leaf_index
        statement = decode_statement(line.entry, where=place)
        self._included(line, statement, place)
        payload = statement.payload
        if (line.receipt is UNSET) is isinstance(payload, Batch):
            raise CorruptError(
                "a receipt stands beside batches, and only there", where=place, code="bad-settlement"
            )
        match payload:
            case IssuerKey():
                self._key(statement, payload, place)
            case DeploymentStatement():
                self._models[document_digest(payload.deployment)] = payload.deployment.model
            case FactorsStatement():
                self._factors.add(document_digest(payload.factors))
            case Batch():
                self._signed(statement, place)
                self._batch(line, statement, place)
            case Correction():
                self._signed(statement, place)
                key = statement.issuer, payload.record, payload.record_hash
                self._corrections.setdefault(key, []).append((line.leaf_index, payload))
            case _:
                raise CorruptError(
                    f"a {statement.kind} statement does not belong here", where=place, code="bad-settlement"
                )

    def _included(self, line: form.SettlementLeaf, statement: SignedStatement, place: str) -> None:
        if self._checkpoint is None:
            raise CorruptError(
                "there is no checkpoint to prove it against", where=place, code="bad-settlement"
            )
        if statement.receipts:
            raise CorruptError("has receipts attached", where=place, code="bad-settlement")
        root = root_from_inclusion(
            statement.leaf_hash,
            line.leaf_index,
            self._checkpoint.size,
            [bytes.fromhex(_hex(p)) for p in line.path],
        )
        if root != self._checkpoint.root:
            raise CorruptError(
                "statement and path do not lead to the checkpoint's root",
                where=place,
                code="bad-inclusion-proof",
            )

    def _key(self, statement: SignedStatement, payload: IssuerKey, place: str) -> None:
        verify_statement(statement, self._log_public(statement.kid, place), where=place)
        if payload.action == "revoke" or payload.key is UNSET:
            raise CorruptError("registers no key", where=place, code="bad-settlement")
        key = parse_cose_key(decode_cbor(bytes.fromhex(payload.key), where=place))
        self._keys[payload.issuer, key.kid] = key

    def _signed(self, statement: SignedStatement, place: str) -> None:
        key = self._keys.get((statement.issuer, statement.kid))
        if key is None:
            raise CorruptError(
                f"no key {statement.kid.hex()} of {statement.issuer} is in the bundle",
                where=place,
                code="bad-settlement",
            )
        verify_statement(statement, key, where=place)
        self._used.add((statement.issuer, statement.kid.hex()))

    def _batch(self, line: form.SettlementLeaf, statement: SignedStatement, place: str) -> None:
        assert line.receipt is not UNSET  # noqa: S101 - seen by the caller
        self._batches[line.leaf_index] = SettledBatch(statement, line.leaf_index, line.receipt)
        receipt = decode_receipt(line.receipt, where=f"{place} receipt")
        if receipt.origin != self._origin or receipt.leaf_index != line.leaf_index:
            raise CorruptError("is of another log or leaf", where=f"{place} receipt", code="other-log")
        key = self._log_public(receipt.kid, f"{place} receipt")
        verify_receipt(receipt, statement.leaf_hash, key, subject=statement.subject, where=f"{place} receipt")

    def _log_public(self, kid: bytes, place: str) -> PublicKey:
        key = self._publics.get(kid)
        if key is None:
            raise InvalidError(
                f"was signed by key {kid.hex()[:16]}..., which is not one of the log's that were given",
                where=place,
                remedy="pass all verifier keys that the log has had, one a line",
                code="other-key",
            )
        return key

    # --- records ---

    def _record(self, line: form.SettlementRecord) -> None:
        data = bytes(line.record)
        record = decode_record(data)
        place = f"record {record.id}"
        at = (line.leaf_index, line.position)
        if at <= self._last:
            raise CorruptError("records are not in the order of the log", where=place, code="bad-settlement")
        self._last = at
        found = self._batches.get(line.leaf_index)
        if found is None or not isinstance(found.statement.payload, Batch):
            raise CorruptError(
                f"no batch statement at leaf {line.leaf_index} was verified",
                where=place,
                code="bad-settlement",
            )
        digest = record_hash(data)
        root = root_from_inclusion(
            digest, line.position, found.statement.payload.count, [bytes.fromhex(_hex(p)) for p in line.path]
        )
        if root.hex() != found.statement.payload.root:
            raise CorruptError(
                "record, position and path do not lead to the root that the issuer signed",
                where=place,
                code="bad-record-proof",
            )
        header = self._header
        assert header is not None  # noqa: S101 - no record line comes before it
        if record.tenant != header.tenant:
            raise CorruptError("is of another tenant", where=place, code="bad-settlement")
        early = header.from_us is not UNSET and record.started_us < header.from_us
        if early or (header.to_us is not UNSET and record.started_us >= header.to_us):
            raise CorruptError("did not start in the period", where=place, code="bad-settlement")
        model = self._models.get(record.deployment)
        if model is None or (record.factors is not UNSET and record.factors not in self._factors):
            raise CorruptError("its deployment or factors are not here", where=place, code="bad-settlement")
        if record.id in self._ids:
            raise CorruptError("is here twice", where=place, code="bad-settlement")
        if len(self._ids) == form.MAX_RECORDS:
            raise InvalidError("there are too many records", code="too-large")
        self._ids.add(record.id)
        issuer = found.statement.issuer
        restated = restate(record, self._corrections.get((issuer, record.id, digest.hex()), ()))
        self._corrected += bool(restated.changed)
        self._sums.add(model, restated)
        salt = None if line.request_salt is UNSET else bytes.fromhex(_hex(line.request_salt))
        self._opened += salt is not None
        if self._on_record is not None:
            self._on_record(SettledRecord(record, restated.record, issuer, *at, salt))

    # --- the end ---

    def _seal(self, line: form.Seal, where: str) -> None:
        if self._header is None:
            raise CorruptError("a seal without a header", code="bad-settlement")
        self._findings.note(
            "that nothing is missing is the log's word: compare it with your own log (`tallystick settlement "
            "dispute`)"
        )
        self._sealed = form.open_seal(line, self._origin, self._publics, where=where)

    def _finish(self) -> None:
        add = self._findings.add
        if self._header is None:
            add("bad-settlement", "header", "is missing", _KEEP)
            return
        if not self._part_damaged:
            self._compare_totals()
            named = {(each.issuer, each.kid) for each in self._header.issuers}
            if named != self._used:
                add("bad-settlement", "header, issuers", "are not those that signed what is here", _KEEP)
            if not self._ids:
                add("bad-settlement", "records", "there are none", _KEEP)
        if self._sealed is None:
            if not self._part_damaged:
                add("bad-settlement", "seal", "is missing: the end was cut off", _KEEP)
            return
        read = self._digests.contents()
        for part in form.PARTS:
            signed, found = getattr(self._sealed, part), getattr(read, part)
            if signed != found:
                add(
                    "bad-settlement",
                    f"{part} part",
                    f"has {found.lines} lines and digest {found.sha256[:16]}..., but the log signed "
                    f"{signed.lines} and {signed.sha256[:16]}...",
                    _KEEP,
                )

    def _compare_totals(self) -> None:
        expected = {(each.day, each.model): each for each in self._sums.lines()}
        order = [(each.day, each.model) for each in self._totals]
        if order != sorted(expected):
            self._findings.add(
                "bad-settlement",
                "totals",
                "are not one for each day and model of the records, in order",
                _KEEP,
            )
        for line in self._totals:
            right = expected.get((line.day, line.model))
            if right is None or right == line:
                continue
            for name in _differing(line, right):
                self._findings.add(
                    "bad-settlement",
                    f"total of {line.day}, {line.model}, {name}",
                    f"is {_shown(line, name)}, but the records come to {_shown(right, name)}",
                    _KEEP,
                )


def _differing(line: form.SettlementTotal, right: form.SettlementTotal) -> Iterator[str]:
    for name in form.SettlementTotal.__struct_fields__:
        if getattr(line, name) != getattr(right, name):
            yield name


def _shown(line: form.SettlementTotal, name: str) -> str:
    value = getattr(line, name)
    return "absent" if value is UNSET else msgspec.json.encode(value).decode()[:300]


def _hex(text: str) -> str:
    try:
        if bytes.fromhex(text).hex() == text:
            return text
    except ValueError:
        pass
    raise CorruptError("a hash is not lower-case hex", code="bad-settlement")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of bounded length; one that is longer comes in pieces, of which each is no line."""
    while data := file.readline(form.MAX_LINE_BYTES + 2):
        yield data
