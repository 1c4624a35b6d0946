"""Owns the table of problem types: every code that the API can answer with, its title, status and remedy.

A problem's ``type`` is ``/problems/<code>``; that address explains it. Codes never change their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError

__all__ = ["PROBLEM_TYPES", "ProblemType", "problem_type_of"]


@dataclass(frozen=True)
class ProblemType:
    """One kind of problem. ``status`` is the HTTP status code that goes with it."""

    code: str
    status: int
    title: str
    explanation: str
    remedy: str

    @property
    def path(self) -> str:
        """Where the service explains it, and the problem's ``type``."""
        return f"/problems/{self.code}"


_TABLE = (
    # --- the request ---------------------------------------------------------------------------------
    ProblemType(
        "bad-parameter", 400, "Bad parameter",
        "A path or query parameter is missing, unknown, given twice, or outside its range. Unknown ones "
        "are refused because a typing error in a filter would silently widen the result.",
        "Compare the request with the API reference at /openapi.json.",
    ),
    ProblemType(
        "bad-cursor", 400, "Bad cursor",
        "The pagination cursor is not one that this service gave.",
        "Start again without a cursor, and pass back `next` unchanged.",
    ),
    ProblemType(
        "not-found", 404, "Not found",
        "There is nothing at this address, or what it names is not in the log.",
        "Check the identifier, and that it belongs to this log.",
    ),
    ProblemType(
        "method-not-allowed", 405, "Method not allowed",
        "The address exists, but not for this HTTP method.",
        "Use a method that the `Allow` header names.",
    ),
    ProblemType(
        "bad-request", 400, "Bad request",
        "The request does not follow HTTP or this API.",
        "Compare the request with the API reference at /openapi.json.",
    ),
    ProblemType(
        "body-too-large", 413, "Body too large",
        "The body, as sent, has more bytes than this endpoint takes.",
        "Split the batch, or compress it with `Content-Encoding: zstd`.",
    ),
    ProblemType(
        "compressed-bomb", 413, "Body too large once decompressed",
        "Decompression was stopped at the largest size that a batch may have.",
        "Split the batch.",
    ),
    ProblemType(
        "bad-compression", 400, "Body does not decompress",
        "The body is not exactly one zstd frame with a window of at most 8 MiB.",
        "Compress the whole body as one frame, at a level up to 19.",
    ),
    ProblemType(
        "bad-length", 400, "Bad Content-Length",
        "The Content-Length header is not a plain decimal number.",
        "Send the body's length in bytes, or use chunked transfer.",
    ),
    ProblemType(
        "body-timeout", 408, "Body took too long",
        "The body was not complete within the time that the service waits.",
        "Send smaller batches, or send them over a faster connection.",
    ),
    ProblemType(
        "disconnected", 400, "Connection closed early",
        "The connection closed before the body was complete. Nothing was registered.",
        "Send the request again.",
    ),
    ProblemType(
        "unsupported-media-type", 415, "Unsupported media type",
        "The Content-Type header is not the one that this endpoint takes.",
        "Send the media type that the problem's remedy names.",
    ),
    ProblemType(
        "unsupported-encoding", 415, "Unsupported content encoding",
        "The Content-Encoding header names something else than zstd.",
        "Send zstd, or the body uncompressed.",
    ),
    # --- who asks ------------------------------------------------------------------------------------
    ProblemType(
        "missing-key", 401, "API key missing",
        "This endpoint needs an API key, and the request has none.",
        "Send `Authorization: Bearer <API key>`.",
    ),
    ProblemType(
        "wrong-key", 401, "API key not valid",
        "The API key is malformed, unknown or revoked. The answer is the same for all three.",
        "Ask an administrator of this log for a key.",
    ),
    ProblemType(
        "missing-scope", 403, "API key lacks the scope",
        "The API key is valid, but was not made for this kind of request.",
        "Use a key whose scopes include the one that the problem names.",
    ),
    ProblemType(
        "bad-scope", 400, "Unknown scope",
        "An API key was asked for with a scope that does not exist.",
        "Use emit, read or admin.",
    ),
    # --- encodings -----------------------------------------------------------------------------------
    ProblemType(
        "malformed-cbor", 400, "Malformed CBOR",
        "The bytes are not one item of deterministic CBOR (RFC 8949 section 4.2.1).",
        "Use definite lengths, shortest integers, sorted unique keys and no trailing bytes.",
    ),
    ProblemType(
        "malformed-cose", 400, "Malformed COSE",
        "The bytes are CBOR, but not a tagged COSE_Sign1 message (RFC 9052 section 4.2).",
        "Send the statement exactly as it was signed.",
    ),
    ProblemType(
        "malformed-batch", 400, "Malformed batch",
        "The body is CBOR, but not an array of two byte strings: the statement and its records.",
        "Send `[statement, records]` in deterministic CBOR.",
    ),
    ProblemType(
        "malformed-statement", 400, "Malformed statement",
        "The message is COSE, but not a statement: a header, claim or payload member is missing, unknown or "
        "inconsistent, or receipts are attached.",
        "Make the statement with `ledger.core.statements`, or as docs and schemas describe it.",
    ),
    ProblemType(
        "malformed-receipt", 400, "Malformed receipt",
        "The message is COSE, but not a receipt of this kind of log (RFC 9942).",
        "Fetch the receipt again.",
    ),
    ProblemType(
        "malformed-json", 400, "Malformed JSON",
        "The bytes are not JSON, or record lines do not end with a newline.",
        "Send canonical JSON (RFC 8785), one record a line.",
    ),
    ProblemType(
        "not-canonical", 400, "JSON not canonical",
        "The JSON is not in the one form that RFC 8785 allows: white space, order of keys, doubled keys, "
        "or another spelling of a number or string.",
        "Encode with an RFC 8785 library; sign and send the same bytes.",
    ),
    ProblemType(
        "schema", 422, "Does not match the schema",
        "A member is missing, unknown, of another type or out of range. Numbers are integers "
        "from 0 to 2^53 - 1; there are no floats.",
        "Compare with the JSON Schema; `detail` names the member.",
    ),
    ProblemType(
        "too-deep", 400, "JSON nested too deep",
        "The JSON is nested deeper than any document of this log.",
        "Send the documents that the schemas describe.",
    ),
    ProblemType(
        "too-large", 413, "Message too large",
        "The message has more bytes than a message of its kind can have.",
        "Send a smaller message.",
    ),
    ProblemType(
        "statement-too-large", 413, "Statement too large",
        "A statement has at most 65,535 bytes, the limit of tlog-tiles for an entry.",
        "Refer to fewer deployments or factor sets in one batch.",
    ),
    ProblemType(
        "record-too-large", 413, "Record too large",
        "A record has at most 16,384 bytes.",
        "Send fewer quality metrics, or as an evaluation.",
    ),
    # --- signatures and keys -------------------------------------------------------------------------
    ProblemType(
        "bad-signature", 422, "Signature does not verify",
        "The signature is not by the key that the statement names, or bytes were changed after signing.",
        "Send the bytes exactly as signed; check which key the issuer registered.",
    ),
    ProblemType(
        "bad-algorithm", 422, "Algorithm does not fit the key",
        "The statement's alg header is not one that its issuer's key can be used with.",
        "Use EdDSA (-8) or Ed25519 (-19), ES256 (-7), or ML-DSA-44 (-48), as the key demands.",
    ),
    ProblemType(
        "bad-key", 422, "Not a usable key",
        "The key is not a public key of a supported kind, or its kid or alg does not fit it.",
        "Send an Ed25519, ES256 or ML-DSA-44 public key.",
    ),
    ProblemType(
        "bad-issuer-name", 422, "Issuer name not usable",
        "An issuer's name is a scheme-less URL of at most 255 characters.",
        "Use letters, digits and . _ ~ : / - as in `gpu-7.example.com/vllm`.",
    ),
    ProblemType(
        "unknown-issuer", 403, "Issuer not registered",
        "The statement's issuer is not registered with this log, or not with the key that signed it.",
        "Ask an administrator of this log to register the issuer and its key.",
    ),
    ProblemType(
        "unknown-key", 404, "No such key",
        "The issuer has no key of this name that is in force.",
        "See the issuer's keys at /issuers/{issuer}/keys.",
    ),
    ProblemType(
        "revoked-key", 403, "Issuer key revoked",
        "The key that signed the statement was revoked. What it signed before stays valid.",
        "Sign with another registered key of the issuer.",
    ),
    ProblemType(
        "key-exists", 409, "Key already registered",
        "The key is already registered with this log, perhaps for another issuer or revoked.",
        "Use another key: one key belongs to one issuer, once.",
    ),
    # --- what the log allows -------------------------------------------------------------------------
    ProblemType(
        "kind-not-allowed", 422, "Kind of statement not allowed here",
        "Key statements are made by the log itself; batches go to /batches.",
        "Send the statement where its kind belongs.",
    ),
    ProblemType(
        "records-missing", 422, "Records missing",
        "A batch statement came without its records.",
        "Send it to /batches, together with the records.",
    ),
    ProblemType(
        "records-unexpected", 422, "Records not expected",
        "Records came with a statement of a kind that has none.",
        "Send the statement alone to /entries.",
    ),
    ProblemType(
        "seq-gap", 409, "Gap in the issuer's chain",
        "The statement's seq is greater than the one that comes next: statements before it are missing.",
        "Send the missing statements first, in order.",
    ),
    ProblemType(
        "seq-reused", 409, "Fork in the issuer's chain",
        "Another statement with this seq is already logged.",
        "Let only one spool write with an issuer's key.",
    ),
    ProblemType(
        "wrong-prev", 409, "Broken link in the issuer's chain",
        "The statement's prev is not the leaf hash of the issuer's previous statement.",
        "Let only one spool write with an issuer's key.",
    ),
    ProblemType(
        "wrong-count", 422, "Wrong number of records",
        "The statement counts another number of records than came with it.",
        "Send exactly the records that the statement was made over.",
    ),
    ProblemType(
        "wrong-root", 422, "Wrong root",
        "The records do not hash to the root that the statement commits to.",
        "Send exactly the bytes that the statement was made over, in their order.",
    ),
    ProblemType(
        "wrong-summary", 422, "Summary does not fit the records",
        "The statement's totals, time range, deployments or factor sets are not those of its records.",
        "Compute them from the records that are sent.",
    ),
    ProblemType(
        "duplicate-record", 409, "Record id already used",
        "A record's id is twice in the batch or already in the log. An id names one record for ever.",
        "Make a new UUIDv7 for each record; send a correction to restate figures.",
    ),
    ProblemType(
        "unknown-document", 422, "Deployment or factor set not in the log",
        "A record refers to a deployment or factor set by a digest that was never published in this log.",
        "Publish the document first: a deployment or factors statement to /entries.",
    ),
    ProblemType(
        "inconsistent-record", 422, "Record inconsistent in itself",
        "Members of a record contradict each other, such as an end before the start.",
        "Correct the member that `detail` names.",
    ),
    ProblemType(
        "total-too-large", 422, "Total too large",
        "A sum over the batch passes 2^53 - 1.",
        "Split the batch.",
    ),
    ProblemType(
        "time-in-future", 422, "Time in the future",
        "A time lies further ahead of the log's clock than clocks may differ.",
        "Set the clock; times are Unix microseconds.",
    ),
    ProblemType(
        "time-too-old", 422, "Time too old",
        "A time lies before 2020: a clock that was never set, or another unit.",
        "Set the clock; times are Unix microseconds.",
    ),
    # --- reading -------------------------------------------------------------------------------------
    ProblemType(
        "out-of-range", 400, "Tree size or index out of range",
        "The log has no such tree size, or the leaf is not in the tree of that size.",
        "Use sizes up to that of the newest checkpoint, and an index below the size.",
    ),
    ProblemType(
        "bad-entry-id", 400, "Not an entry id",
        "An entry is named by its leaf index in decimal or its leaf hash in 64 hex digits.",
        "Take the address from the `Location` header that registration gave.",
    ),
    ProblemType(
        "bad-record-id", 400, "Not a record id",
        "A record is named by its UUID, in the usual form with dashes.",
        "Take the id that the recorder gave.",
    ),
    ProblemType(
        "no-records", 404, "Statement has no records",
        "The entry exists, but is of a kind that has no records.",
        "Ask for the records of a batch.",
    ),
    ProblemType(
        "erased", 410, "Records erased",
        "The record bytes were removed under a rule that an erasure statement names. Their hashes stay.",
        "See the erasure statement in the log.",
    ),
    # --- proofs and files (answers of other parts that share these codes) ----------------------------
    ProblemType(
        "other-key", 422, "Made by another key",
        "The receipt was signed by another key than the one it is checked against.",
        "Use the verifier key of the log that issued it.",
    ),
    ProblemType(
        "other-subject", 422, "About something else",
        "The receipt is about another subject than the statement.",
        "Pair each receipt with its own statement.",
    ),
    ProblemType(
        "quorum-missed", 422, "Too few witnesses",
        "Fewer known witnesses cosigned the checkpoint than the quorum asks for.",
        "Fetch a proof whose checkpoint has more cosignatures.",
    ),
    ProblemType(
        "bad-opening", 422, "Opening does not fit",
        "The opened content does not hash to the commitment.",
        "Check salt and content; each record has its own salt.",
    ),
    ProblemType(
        "bad-chunk", 422, "No such chunk",
        "The commitment has no chunk of this index.",
        "Use an index below the number of chunks.",
    ),
    ProblemType(
        "bad-salt", 422, "Salt of the wrong size",
        "A salt has 32 bytes.",
        "Derive salts as `ledger.core.commitments` does.",
    ),
    ProblemType(
        "bad-secret", 422, "Secret too short",
        "A secret has at least 32 bytes.",
        "Make secrets from the system's random source.",
    ),
    ProblemType(
        "bad-token", 422, "Not a token id",
        "Token ids are integers from 0 to 2^32 - 1.",
        "Pass the ids that the engine reported.",
    ),
    ProblemType(
        "exists", 409, "Already exists",
        "What was to be made is there already and is never overwritten.",
        "Name another one.",
    ),
    # --- the service ---------------------------------------------------------------------------------
    ProblemType(
        "bad-setting", 500, "Bad setting",
        "A setting is out of its range.",
        "See the reference of settings.",
    ),
    ProblemType(
        "overloaded", 503, "Overloaded",
        "The service has as much work as it can hold. Nothing was registered.",
        "Send again after the time that `Retry-After` names.",
    ),
    ProblemType(
        "stopping", 503, "Stopping",
        "The service is being stopped and takes no new statements.",
        "Send again: a statement that was logged gives the same receipt.",
    ),
    ProblemType(
        "storage-failed", 503, "Storage failed",
        "The database did not take the statement: a full disk, a lost connection. Nothing was registered.",
        "Send again later; the operator finds the reason in the service's log.",
    ),
    ProblemType(
        "no-log", 500, "No log",
        "The database has no log in it.",
        "The operator makes one with `tallystick init`.",
    ),
    ProblemType(
        "missing-tile", 500, "Tile missing",
        "A tile of the tree is missing from the database or too narrow.",
        "The operator audits the database and restores a good copy.",
    ),
    ProblemType(
        "inconsistent-log", 500, "Log inconsistent",
        "Head, checkpoint, tiles and statements contradict each other.",
        "The operator audits the database and restores a good copy.",
    ),
    ProblemType(
        "log-rolled-back", 500, "Log rolled back",
        "The database is older than a checkpoint that was published.",
        "The operator restores the newest copy.",
    ),
    ProblemType(
        "fence-lost", 500, "Fence lost",
        "Another writer changed the log past its lock. Nothing was registered.",
        "The operator lets nothing but this service write to the database.",
    ),
    ProblemType(
        "internal", 500, "Internal error",
        "The service met an error that it did not expect. The details are in its log, under the problem's "
        "`instance`.",
        "Send again later; a statement that was logged gives the same receipt.",
    ),
    # --- one for each class of error, for codes without an entry of their own ------------------------
    ProblemType("error", 500, "Error", "Something failed.", "See `detail`."),
    ProblemType("invalid", 400, "Invalid", "The input is malformed.", "See `detail`."),
    ProblemType("refused", 409, "Refused", "The log's rules or state forbid it.", "See `detail`."),
    ProblemType(
        "unavailable", 503, "Unavailable",
        "Something that the service needs is not there now.",
        "Send again later; a statement that was logged gives the same receipt.",
    ),
    ProblemType(
        "corrupt", 500, "Evidence does not verify",
        "What the log stored does not verify: it was changed, cut or mixed up.",
        "Keep what you hold, and tell the operator and the auditor.",
    ),
)  # fmt: skip

PROBLEM_TYPES: dict[str, ProblemType] = {each.code: each for each in _TABLE}
"""Every problem type by its code."""

_BY_CLASS = (InvalidError, RefusedError, UnavailableError, CorruptError, TallystickError)


def problem_type_of(error: TallystickError) -> ProblemType:
    """The problem type of an error: by its code, else by its class."""
    found = PROBLEM_TYPES.get(error.code)
    if found is not None:
        return found
    return next(PROBLEM_TYPES[each.default_code] for each in _BY_CLASS if isinstance(error, each))
