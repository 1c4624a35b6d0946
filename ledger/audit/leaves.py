"""Checks statements in the order of the log: signatures, issuers' keys and chains, documents, receipts.

All keys but the log's own are learned from the log: leaf 0 names the log's key, and the log signs which key
is which issuer's, from which leaf on, and until which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import UNSET

from ledger.audit.report import Findings
from ledger.audit.sources import Leaf, StoredColumns
from ledger.audit.tables import same, shown
from ledger.core import cose, merkle, receipts
from ledger.core.canonical import encode_canonical
from ledger.core.chain import ChainHead, next_head
from ledger.core.errors import InvalidError, TallystickError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.core.records import document_digest
from ledger.core.statements import (
    Admin,
    Batch,
    DeploymentStatement,
    FactorsStatement,
    IssuerKey,
    PricesStatement,
    SignedStatement,
    decode_statement,
    verify_statement,
)

__all__ = ["Document", "LeafAudit"]

_RECEIPT_LABELS = frozenset({cose.ALG, cose.KID, cose.CWT_CLAIMS, cose.VDS, receipts.TREE_SIZE})
_SUSPECT = "keep this copy as evidence; the ledger never accepts such a statement"


class Roots(Protocol):
    """Knows, or will know, the roots of trees that receipts name."""

    @property
    def size(self) -> int:
        """How many leaves there are in the end."""

    def when(self, size: int, verify: Callable[[bytes], None]) -> bool:
        """Call ``verify`` with the root at ``size`` once it is known; False if it never will be."""


@dataclass
class _Key:
    """An issuer's key as the log's statements tell it."""

    issuer: str
    public: PublicKey
    encoded: bytes
    added_leaf: int
    revoked_leaf: int | None = None
    named: bool = True
    """Whether the log named it; the auditor may hold keys of the log that it has not named yet."""


@dataclass(frozen=True)
class Document:
    """A deployment, factor set or price book, as first published."""

    kind: str
    leaf_index: int
    body: bytes
    model: str | None
    version: str | None


class LeafAudit:
    """What the statements so far have established. Owned by the one thread that audits.

    Args:
        log_keys: the log's public keys, all that the auditor trusts.
        origin: the log's name.
        roots: tells the root of the tree that a receipt names, once it is known.
        findings: where contradictions go.
        issuer_keys: keys that the auditor has from the issuers themselves.
        cell: names the place of a leaf's column.
        whole: whether every leaf is there, so that a gap in an issuer's chain is a finding.
    """

    def __init__(
        self,
        log_keys: Sequence[PublicKey],
        origin: str,
        roots: Roots,
        findings: Findings,
        issuer_keys: Mapping[str, Collection[PublicKey]] | None,
        cell: Callable[[int, str], str],
        *,
        whole: bool = True,
    ) -> None:
        self.origin = origin
        # The log's own keys are known without leaf 0, whatever that says.
        self.keys = {
            key.kid: _Key(origin, key, cose.encode_cbor(key.to_cose_key()), 0, named=len(log_keys) == 1)
            for key in log_keys
        }
        self.heads = {origin: ChainHead()}
        self.documents: dict[str, Document] = {}
        # The log's keys with the leaf from which on each signs receipts, in that order.
        self._own: list[tuple[int, PublicKey]] = [(0, log_keys[0])]
        self._roots = roots
        self._findings = findings
        self._issuer_keys = issuer_keys or {}
        self._cell = cell
        self._whole = whole

    @property
    def own(self) -> list[tuple[int, PublicKey]]:
        """The log's keys with the leaf from which on each signs receipts, in that order."""
        return self._own

    def restore(
        self,
        keys: Mapping[bytes, tuple[str, PublicKey, bytes, int, int | None, bool]],
        heads: Mapping[str, ChainHead],
        own: Sequence[tuple[int, bytes]],
        documents: Mapping[str, Document],
    ) -> None:
        """Go on after leaves that were read before, with what they established.

        Args:
            keys: kid -> issuer, key, encoded, leaf that added it, leaf that revoked it, named by the log.
            heads: issuer -> where its chain stands.
            own: leaf -> kid of the log's key from there on.
            documents: by digest.
        """
        for kid, key in keys.items():
            self.keys[kid] = _Key(*key)
        self.heads |= heads
        if own:
            self._own = [(leaf, self.keys[kid].public) for leaf, kid in own]
        self.documents |= documents

    def read(self, leaf: Leaf) -> SignedStatement | None:
        """Decode a leaf's entry; None, and a finding, if it is no statement."""
        where = self._cell(leaf.index, "entry")
        try:
            if not isinstance(leaf.entry, bytes):
                raise InvalidError(
                    f"is {shown(leaf.entry)}, not bytes", where=where, code="malformed-statement"
                )
            statement = decode_statement(leaf.entry, where=where)
            if statement.receipts:
                raise InvalidError("has an unprotected header", where=where, code="malformed-statement")
        except TallystickError as error:
            self._findings.add_error(error, where)
            return None
        return statement

    def check(self, leaf: Leaf, statement: SignedStatement, leaf_hash: bytes) -> None:
        """Check a statement against what came before it, and learn from it."""
        where = self._cell(leaf.index, "entry")
        payload = statement.payload
        if leaf.index == 0:
            self._check_genesis(statement, where)
        elif isinstance(payload, Admin) and statement.issuer != self.origin:
            self._findings.add(
                "bad-act",
                where,
                f"{statement.issuer} tells of an act, which only {self.origin} may",
                _SUSPECT,
            )
        elif isinstance(payload, IssuerKey):
            self._learn_key(payload, statement, leaf.index, where)
        self._check_signature(statement, leaf.index, where)
        head = self.heads.get(statement.issuer, ChainHead())
        # Where leaves were left out, only what is there can be held against the rule.
        if self._whole or payload.seq <= head.next_seq:
            try:
                next_head(head, statement, where=where)
            except TallystickError as error:
                self._findings.add_error(error, where)
        # On a break go on from this statement, with the hash that the tree has for it.
        self.heads[statement.issuer] = ChainHead(payload.seq + 1, leaf_hash)
        if isinstance(payload, DeploymentStatement | FactorsStatement | PricesStatement):
            self._learn_document(payload, leaf.index)

    def skip(self, columns: StoredColumns | None, leaf_hash: bytes) -> None:
        """Go on after an unreadable statement: take its issuer's chain as if it had been right."""
        if columns is not None and isinstance(columns.issuer, str) and isinstance(columns.seq, int):
            self.heads[columns.issuer] = ChainHead(columns.seq + 1, leaf_hash)

    def check_columns(self, leaf: Leaf, statement: SignedStatement) -> None:
        """Compare what is stored beside the entry with what the entry says."""
        columns, payload = leaf.columns, statement.payload
        if columns is None:
            return
        batch = payload if isinstance(payload, Batch) else None
        expected = {
            "kind": statement.kind,
            "issuer": statement.issuer,
            "seq": payload.seq,
            "record_count": batch.count if batch else 0,
            "first_us": batch.first_us if batch else None,
            "last_us": batch.last_us if batch else None,
        }
        if batch is None:
            expected["records_sha256"] = None
            if leaf.block is not None:
                self._findings.add(
                    "row-differs",
                    self._cell(leaf.index, "records"),
                    f"has {shown(leaf.block)}, but a statement of kind {statement.kind} has no records",
                )
        for column, right in expected.items():
            value = getattr(columns, column)
            if not same(value, right):
                self._findings.add(
                    "row-differs",
                    self._cell(leaf.index, column),
                    f"is {shown(value)}, but the statement says {shown(right)}",
                )

    # --- receipts ---

    def check_receipt(self, leaf: Leaf, statement: SignedStatement) -> None:
        """See to it that a leaf's receipt is checked once the tree has the size that the receipt names.

        To be called before the leaf is added to the tree.
        """
        self._hand_over(leaf.index, statement)
        if leaf.columns is not None:
            self._check_stored_receipt(leaf.index, leaf.columns, statement.subject)
        elif leaf.receipt is not None:
            self._check_given_receipt(leaf.index, leaf.receipt, statement)

    def vouched(self, leaf: Leaf) -> bool:
        """Whether the receipt that came with a leaf proves its entry."""
        if leaf.receipt is None:
            return False
        try:
            receipts.verify_receipt(
                receipts.decode_receipt(leaf.receipt), merkle.leaf_hash(leaf.entry), self._log_key(leaf.index)
            )
        except TallystickError:
            return False
        return True

    def _check_stored_receipt(self, index: int, columns: StoredColumns, subject: str) -> None:
        where = self._cell(index, "receipt_signature")
        signature, size, registered_s = columns.receipt_signature, columns.tree_size, columns.registered_s
        if type(size) is not int or type(registered_s) is not int or not isinstance(signature, bytes):
            self._findings.add(
                "bad-receipt", where, "tree_size, registered_s or receipt_signature is of the wrong type"
            )
            return

        key = self._log_key(index)
        known = self.keys.get(key.kid)
        if known is not None and known.revoked_leaf is not None and known.revoked_leaf < index:
            self._findings.add(
                "revoked-key",
                where,
                f"was logged after leaf {known.revoked_leaf}, which froze the log by revoking its key",
                _SUSPECT,
            )

        def verify(root: bytes) -> None:
            self._findings.counts.signatures += 1
            header = {
                cose.ALG: key.alg,
                cose.KID: key.kid,
                **receipts.receipt_header(
                    origin=self.origin, subject=subject, registered_s=registered_s, tree_size=size
                ),
            }
            try:
                message = cose.Sign1(cose.encode_cbor(header), header, {}, None, signature)
                cose.verify_sign1(message, key, payload=root, understood=_RECEIPT_LABELS, where=where)
            except TallystickError:
                self._findings.add(
                    "bad-receipt",
                    where,
                    f"the receipt does not verify: tree_size {size}, registered_s {registered_s} or the "
                    "signature is not what the log's key signed",
                    "the receipt that the issuer holds says what is right",
                )

        if size <= index or not self._roots.when(size, verify):
            self._findings.add(
                "bad-receipt",
                self._cell(index, "tree_size"),
                f"no tree of {size} leaves has leaf {index} in this log of {self._roots.size}",
            )

    def _check_given_receipt(self, index: int, data: bytes, statement: SignedStatement) -> None:
        where = f"receipt of entry {index}"
        key = self._log_key(index)
        known = self.keys.get(key.kid)
        if known is not None and known.revoked_leaf is not None and known.revoked_leaf < index:
            self._findings.add(
                "revoked-key",
                where,
                f"was logged after leaf {known.revoked_leaf}, which froze the log by revoking its key",
                _SUSPECT,
            )

        def verify(root: bytes) -> None:
            self._findings.counts.signatures += 1
            try:
                proven = receipts.verify_receipt(
                    receipt, statement.leaf_hash, key, subject=statement.subject, where=where
                )
                if proven != root:
                    raise InvalidError("proves another tree", where=where, code="bad-receipt")
            except TallystickError as error:
                self._findings.add_error(error, where, code="bad-receipt")

        try:
            receipt = receipts.decode_receipt(data, where=where)
        except TallystickError as error:
            self._findings.add_error(error, where, code="bad-receipt")
            return
        if receipt.origin != self.origin or receipt.leaf_index != index:
            self._findings.add("bad-receipt", where, f"is for leaf {receipt.leaf_index} of {receipt.origin}")
        elif receipt.tree_size > self._roots.size:
            self._findings.gap(where, "it names a tree newer than the audited checkpoint")
        elif not self._roots.when(receipt.tree_size, verify):
            self._findings.add("bad-receipt", where, f"names a tree of {receipt.tree_size} leaves")

    # --- keys ---

    def _log_key(self, index: int) -> PublicKey:
        """The log's key that signs receipts at a leaf."""
        return next(key for leaf, key in reversed(self._own) if leaf <= index or leaf == 0)

    def _hand_over(self, index: int, statement: SignedStatement) -> None:
        """Learn from leaf 0, and from a leaf by which the log rotates its key, who signs receipts from it on.

        Whether the statement is right is found later, when it is checked.
        """
        payload = statement.payload
        if not isinstance(payload, IssuerKey) or not statement.issuer == payload.issuer == self.origin:
            return
        known = self.keys.get(bytes.fromhex(payload.kid))
        if index == 0 and known is not None:
            self._own = [(0, known.public)]
        elif payload.action != "revoke" and index:
            public = known.public if known is not None else _key_of(payload)
            if public is not None:
                self._own.append((index, public))

    def _check_genesis(self, statement: SignedStatement, where: str) -> None:
        payload = statement.payload
        key = self.keys.get(bytes.fromhex(payload.kid)) if isinstance(payload, IssuerKey) else None
        right = (
            isinstance(payload, IssuerKey)
            and payload.action == "add"
            and statement.issuer == payload.issuer == self.origin
            and key is not None
            and payload.key == key.encoded.hex()
        )
        if key is not None and right:
            key.named = True
        if not right:
            self._findings.add(
                "bad-genesis",
                where,
                f"leaf 0 does not add the key of {self.origin}",
                "check that the verifier key is this log's; of a log that rotated its key, pass all of them",
            )

    def _learn_key(self, change: IssuerKey, statement: SignedStatement, index: int, where: str) -> None:
        def bad(what: str) -> None:
            self._findings.add("bad-key-statement", where, what, _SUSPECT)

        kid = bytes.fromhex(change.kid)
        own = change.issuer == self.origin
        signer = self.keys.get(statement.kid)
        # A rotation of the log's own key is signed by the key before it.
        in_force = self._log_key(index - 1 if own and change.action != "revoke" else index)
        if (
            statement.issuer != self.origin
            or signer is None
            or signer.issuer != self.origin
            or signer.revoked_leaf is not None
            or statement.kid != in_force.kid
        ):
            bad(f"{statement.issuer} decides about keys, which only {self.origin} may, with its key in force")
            return
        present = self.keys.get(kid)
        if present is not None and own and not present.named:
            present.added_leaf, present.named = index, True
            return
        if change.action == "revoke":
            if present is None or present.issuer != change.issuer or present.revoked_leaf is not None:
                bad(f"revokes key {change.kid}, which {change.issuer} does not have")
            else:
                present.revoked_leaf = index
            return
        if present is not None:
            bad(f"adds key {change.kid} again")
            return
        try:
            encoded = bytes.fromhex(change.key if change.key is not UNSET else "")
            public = parse_cose_key(cose.decode_cbor(encoded, where=where), where=where)
        except (TallystickError, ValueError) as error:
            bad(f"its key cannot be read: {error}")
            return
        if public.kid != kid:
            bad("its kid is not the thumbprint of its key")
            return
        self.keys[kid] = _Key(change.issuer, public, encoded, index)
        if own:
            self._findings.note(
                f"the log handed over to a key that you did not pass, {change.kid}, at leaf {index}; the key "
                "before it signed that"
            )
        self.heads.setdefault(change.issuer, ChainHead())
        trusted = self._issuer_keys.get(change.issuer)
        if trusted is not None and kid not in {key.kid for key in trusted}:
            self._findings.add(
                "unexpected-key",
                where,
                f"adds key {change.kid} for {change.issuer}, which is none of the keys that you have from it",
                "ask the issuer whether the key is its own; if not, what it signed is forged",
            )

    def _check_signature(self, statement: SignedStatement, index: int, where: str) -> None:
        key = self.keys.get(statement.kid)
        if key is None or key.issuer != statement.issuer:
            self._findings.add(
                "unknown-key",
                where,
                f"is signed by key {statement.kid.hex()}, which the log has not named as one of "
                f"{statement.issuer} before",
                _SUSPECT,
            )
            return
        if key.revoked_leaf is not None and key.revoked_leaf < index:
            self._findings.add(
                "revoked-key",
                where,
                f"is signed by key {statement.kid.hex()}, which leaf {key.revoked_leaf} revoked",
                _SUSPECT,
            )
        self._findings.counts.signatures += 1
        try:
            verify_statement(statement, key.public, where=where)
        except TallystickError as error:
            self._findings.add_error(error, where)

    # --- documents ---

    def _learn_document(
        self, payload: DeploymentStatement | FactorsStatement | PricesStatement, index: int
    ) -> None:
        if isinstance(payload, DeploymentStatement):
            deployment = payload.deployment
            digest, body = document_digest(deployment), encode_canonical(deployment)
            version = None if deployment.version is UNSET else deployment.version
            document = Document("deployment", index, body, deployment.model, version)
        else:
            kind, published = (
                ("factors", payload.factors)
                if isinstance(payload, FactorsStatement)
                else ("prices", payload.prices)
            )
            digest, body = document_digest(published), encode_canonical(published)
            document = Document(kind, index, body, None, None)
        self.documents.setdefault(digest, document)

    def check_documents(self, batch: Batch, where: str) -> None:
        """Check that what a batch refers to was published before it, as what it is referred to."""
        for kind, digests in (
            ("deployment", batch.deployments),
            ("factors", batch.factors),
            ("prices", batch.prices or ()),
        ):
            for digest in digests:
                document = self.documents.get(digest)
                if document is None or document.kind != kind:
                    self._findings.add(
                        "unknown-document",
                        where,
                        f"refers to the {kind} {digest}, which no earlier leaf published",
                        _SUSPECT,
                    )

    # --- what the tables must hold ---

    def expected_rows(self) -> dict[str, dict[tuple[Any, ...], tuple[Any, ...]]]:
        """The rows of ``issuer``, ``issuer_key`` and ``document`` that follow from the statements."""
        return {
            "issuer": {(name,): (name, head.next_seq, head.last_leaf) for name, head in self.heads.items()},
            "issuer_key": {
                (kid,): (kid, key.issuer, key.public.alg, key.encoded, key.added_leaf, key.revoked_leaf)
                for kid, key in self.keys.items()
                if key.named
            },
            "document": {
                (digest,): (digest, d.kind, d.leaf_index, d.body, d.model, d.version)
                for digest, d in self.documents.items()
            },
        }


def _key_of(change: IssuerKey) -> PublicKey | None:
    try:
        return parse_cose_key(
            cose.decode_cbor(bytes.fromhex("" if change.key is UNSET else change.key), where="key")
        )
    except (TallystickError, ValueError):
        return None
