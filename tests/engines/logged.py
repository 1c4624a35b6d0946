"""What a recorder without a ledger left in its spool: records, deployments, and whether commitments open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ledger import zstd
from ledger.core import cose
from ledger.core.commitments import Opening, commit_request, record_salt, token_bytes, verify_opening
from ledger.core.records import (
    Deployment,
    Record,
    decode_record_lines,
    document_digest,
)
from ledger.core.statements import Batch, DeploymentStatement, Heartbeat
from ledger.emit import Recorder
from ledger.emit.identity import NO_TENANT, Tenants, load_secret
from ledger.emit.spool import Spool
from ledger.emit.spooled import decode_spooled

_MAX_BYTES = 64 << 20


class Logged:
    """Reads the spool of a recorder that has been closed.

    Args:
        spool: its directory.
    """

    def __init__(self, spool: Path) -> None:
        self.records: list[Record] = []
        self.deployments: dict[str, Deployment] = {}
        self.dropped = 0
        reader = Spool(spool, None, limit_bytes=1 << 40)
        for seq in reader.waiting():
            path = reader.path_of(seq)
            spooled = decode_spooled(path.read_bytes(), where=path.name)
            payload = spooled.statement.payload
            if isinstance(payload, Batch | Heartbeat):
                self.dropped += payload.dropped
            if isinstance(payload, Batch):
                plain = zstd.decompress_bounded(spooled.body, _MAX_BYTES)
                _, lines = cose.decode_cbor(plain, where=path.name, max_bytes=_MAX_BYTES)
                self.records += decode_record_lines(lines)[0]
            elif isinstance(payload, DeploymentStatement):
                self.deployments[document_digest(payload.deployment)] = payload.deployment
        self._tenants = Tenants(spool / "tenants", load_secret(spool / "issuer.secret"))

    def one(self) -> Record:
        """The only record."""
        assert len(self.records) == 1, self.records
        return self.records[0]

    def by_id(self) -> dict[str, Record]:
        """All records; no id is there twice."""
        assert not [key for key, count in Counter(each.id for each in self.records).items() if count > 1]
        return {each.id: each for each in self.records}

    def deployment(self, record: Record) -> Deployment:
        """What the record refers to."""
        return self.deployments[record.deployment]

    def _salt(self, record: Record, purpose: str, tenant: str) -> bytes:
        return record_salt(self._tenants.keys([tenant])[tenant], record.id, purpose)

    def opens(
        self,
        record: Record,
        inputs: Sequence[int] | None,
        outputs: Sequence[int] | None,
        tenant: str = NO_TENANT,
    ) -> bool:
        """Check that the commitments open against these token ids; None where there must be no commitment."""
        for purpose, commitment, ids in (("input", record.input, inputs), ("output", record.output, outputs)):
            if ids is None:
                assert not commitment, f"there is a commitment to the {purpose}"
                continue
            assert commitment
            assert commitment.of == "tokens"
            salt = self._salt(record, purpose, tenant)
            content = token_bytes(list(ids))
            verify_opening(bytes.fromhex(commitment.digest), Opening(of="tokens", salt=salt, content=content))
        return True

    def opens_text(self, record: Record, prompt: str, answer: str, tenant: str = NO_TENANT) -> bool:
        """Check that the commitments are of text, and open against this one."""
        for purpose, commitment, text in (("input", record.input, prompt), ("output", record.output, answer)):
            assert commitment
            assert commitment.of == "text"
            salt = self._salt(record, purpose, tenant)
            opening = Opening(of="text", salt=salt, content=text.encode())
            verify_opening(bytes.fromhex(commitment.digest), opening)
        return True

    def is_request(self, record: Record, request_id: str, tenant: str = NO_TENANT) -> bool:
        """Whether the record is of the request that the caller named so."""
        return record.request == commit_request(request_id, self._salt(record, "request", tenant)).hex()


def new_recorder(spool: Path) -> Recorder:
    """A recorder that keeps everything in its spool."""
    return Recorder(spool=spool, issuer="tests.example/engine", max_age_s=0.05, heartbeat_s=None)
