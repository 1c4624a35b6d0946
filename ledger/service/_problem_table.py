"""The problems that the service answers with: code, HTTP status, title, explanation, remedy."""

from __future__ import annotations

__all__ = ["TABLE"]

TABLE: tuple[tuple[str, int, str, str, str], ...] = (
    # --- the request ---------------------------------------------------------------------------------
    (
        "bad-parameter", 400, "Bad parameter",
        "A path or query parameter is missing, unknown, given twice, or outside its range. Unknown ones "
        "are refused because a typing error in a filter would silently widen the result.",
        "Compare the request with the API reference at /openapi.json.",
    ),
    (
        "bad-cursor", 400, "Bad cursor",
        "The pagination cursor is not one that this service gave.",
        "Start again without a cursor, and pass back `next` unchanged.",
    ),
    (
        "not-found", 404, "Not found",
        "There is nothing at this address, or what it names is not in the log.",
        "Check the identifier, and that it belongs to this log.",
    ),
    (
        "method-not-allowed", 405, "Method not allowed",
        "The address exists, but not for this HTTP method.",
        "Use a method that the `Allow` header names.",
    ),
    (
        "bad-request", 400, "Bad request",
        "The request does not follow HTTP or this API.",
        "Compare the request with the API reference at /openapi.json.",
    ),
    (
        "body-too-large", 413, "Body too large",
        "The body, as sent, has more bytes than this endpoint takes.",
        "Split the batch, or compress it with `Content-Encoding: zstd`.",
    ),
    (
        "compressed-bomb", 413, "Body too large once decompressed",
        "Decompression was stopped at the largest size that a batch may have.",
        "Split the batch.",
    ),
    (
        "bad-compression", 400, "Body does not decompress",
        "The body is not exactly one zstd frame.",
        "Compress the whole body as one frame.",
    ),
    (
        "bad-length", 400, "Bad Content-Length",
        "The Content-Length header is not a plain decimal number.",
        "Send the body's length in bytes, or use chunked transfer.",
    ),
    (
        "body-timeout", 408, "Body took too long",
        "The body was not complete within the time that the service waits.",
        "Send smaller batches, or send them over a faster connection.",
    ),
    (
        "disconnected", 400, "Connection closed early",
        "The connection closed before the body was complete. Nothing was registered.",
        "Send the request again.",
    ),
    (
        "unsupported-media-type", 415, "Unsupported media type",
        "The Content-Type header is not the one that this endpoint takes.",
        "Send the media type that the problem's remedy names.",
    ),
    (
        "unsupported-encoding", 415, "Unsupported content encoding",
        "The Content-Encoding header names something else than zstd.",
        "Send zstd, or the body uncompressed.",
    ),
    # --- who asks ------------------------------------------------------------------------------------
    (
        "missing-key", 401, "API key missing",
        "This endpoint needs an API key, and the request has none.",
        "Send `Authorization: Bearer <API key>`.",
    ),
    (
        "wrong-key", 401, "API key not valid",
        "The API key is malformed, unknown or revoked. The answer is the same for all three.",
        "Ask an administrator of this log for a key.",
    ),
    (
        "missing-scope", 403, "API key lacks the scope",
        "The API key is valid, but was not made for this kind of request.",
        "Use a key whose scopes include the one that the problem names.",
    ),
    (
        "bad-scope", 400, "Unknown scope",
        "An API key was asked for with a scope that does not exist.",
        "Use emit, read or admin.",
    ),
    # --- encodings -----------------------------------------------------------------------------------
    (
        "malformed-cbor", 400, "Malformed CBOR",
        "The bytes are not one item of deterministic CBOR (RFC 8949 section 4.2.1).",
        "Use definite lengths, shortest integers, sorted unique keys and no trailing bytes.",
    ),
    (
        "malformed-cose", 400, "Malformed COSE",
        "The bytes are CBOR, but not a tagged COSE_Sign1 message (RFC 9052 section 4.2).",
        "Send the statement exactly as it was signed.",
    ),
    (
        "malformed-batch", 400, "Malformed batch",
        "The body is CBOR, but not an array of two byte strings: the statement and its records.",
        "Send `[statement, records]` in deterministic CBOR.",
    ),
    (
        "malformed-statement", 400, "Malformed statement",
        "The message is COSE, but not a statement: a header, claim or payload member is missing, unknown or "
        "inconsistent, or receipts are attached.",
        "Make the statement with `ledger.core.statements`, or as docs and schemas describe it.",
    ),
    (
        "malformed-receipt", 400, "Malformed receipt",
        "The message is COSE, but not a receipt of this kind of log (RFC 9942).",
        "Fetch the receipt again.",
    ),
    (
        "malformed-json", 400, "Malformed JSON",
        "The bytes are not JSON, or record lines do not end with a newline.",
        "Send canonical JSON (RFC 8785), one record a line.",
    ),
    (
        "not-canonical", 400, "JSON not canonical",
        "The JSON is not in the one form that RFC 8785 allows: white space, order of keys, doubled keys, "
        "or another spelling of a number or string.",
        "Encode with an RFC 8785 library; sign and send the same bytes.",
    ),
    (
        "schema", 422, "Does not match the schema",
        "A member is missing, unknown, of another type or out of range. Numbers are integers "
        "from 0 to 2^53 - 1; there are no floats.",
        "Compare with the JSON Schema; `detail` names the member.",
    ),
    (
        "too-deep", 400, "JSON nested too deep",
        "The JSON is nested deeper than any document of this log.",
        "Send the documents that the schemas describe.",
    ),
    (
        "too-large", 413, "Message too large",
        "The message has more bytes than a message of its kind can have.",
        "Send a smaller message.",
    ),
    (
        "statement-too-large", 413, "Statement too large",
        "A statement has at most 65,535 bytes, the limit of tlog-tiles for an entry.",
        "Refer to fewer deployments or factor sets in one batch.",
    ),
    (
        "record-too-large", 413, "Record too large",
        "A record has at most 16,384 bytes.",
        "Send fewer quality metrics, or as an evaluation.",
    ),
    # --- signatures and keys -------------------------------------------------------------------------
    (
        "bad-signature", 422, "Signature does not verify",
        "The signature is not by the key that the statement names, or bytes were changed after signing.",
        "Send the bytes exactly as signed; check which key the issuer registered.",
    ),
    (
        "bad-algorithm", 422, "Algorithm does not fit the key",
        "The statement's alg header is not one that its issuer's key can be used with.",
        "Use EdDSA (-8) or Ed25519 (-19), ES256 (-7), or ML-DSA-44 (-48), as the key demands.",
    ),
    (
        "bad-key", 422, "Not a usable key",
        "The key is not a public key of a supported kind, or its kid or alg does not fit it.",
        "Send an Ed25519, ES256 or ML-DSA-44 public key.",
    ),
    (
        "bad-issuer-name", 422, "Issuer name not usable",
        "An issuer's name is a scheme-less URL of at most 255 characters.",
        "Use letters, digits and . _ ~ : / - as in `gpu-7.example.com/vllm`.",
    ),
    (
        "unknown-issuer", 403, "Issuer not registered",
        "The statement's issuer is not registered with this log, or not with the key that signed it.",
        "Ask an administrator of this log to register the issuer and its key.",
    ),
    (
        "unknown-key", 404, "No such key",
        "The issuer has no key of this name that is in force.",
        "See the issuer's keys at /issuers/{issuer}/keys.",
    ),
    (
        "revoked-key", 403, "Issuer key revoked",
        "The key that signed the statement was revoked. What it signed before stays valid.",
        "Sign with another registered key of the issuer.",
    ),
    (
        "key-exists", 409, "Key already registered",
        "The key is already registered with this log, perhaps for another issuer or revoked.",
        "Use another key: one key belongs to one issuer, once.",
    ),
    # --- what the log allows -------------------------------------------------------------------------
    (
        "kind-not-allowed", 422, "Kind of statement not allowed here",
        "Key statements are made by the log itself; batches go to /batches.",
        "Send the statement where its kind belongs.",
    ),
    (
        "records-missing", 422, "Records missing",
        "A batch statement came without its records.",
        "Send it to /batches, together with the records.",
    ),
    (
        "records-unexpected", 422, "Records not expected",
        "Records came with a statement of a kind that has none.",
        "Send the statement alone to /entries.",
    ),
    (
        "seq-gap", 409, "Gap in the issuer's chain",
        "The statement's seq is greater than the one that comes next: statements before it are missing.",
        "Send the missing statements first, in order.",
    ),
    (
        "seq-reused", 409, "Fork in the issuer's chain",
        "Another statement with this seq is already logged.",
        "Let only one spool write with an issuer's key.",
    ),
    (
        "wrong-prev", 409, "Broken link in the issuer's chain",
        "The statement's prev is not the leaf hash of the issuer's previous statement.",
        "Let only one spool write with an issuer's key.",
    ),
    (
        "wrong-count", 422, "Wrong number of records",
        "The statement counts another number of records than came with it.",
        "Send exactly the records that the statement was made over.",
    ),
    (
        "wrong-root", 422, "Wrong root",
        "The records do not hash to the root that the statement commits to.",
        "Send exactly the bytes that the statement was made over, in their order.",
    ),
    (
        "wrong-summary", 422, "Summary does not fit the records",
        "The statement's totals, time range, deployments or factor sets are not those of its records.",
        "Compute them from the records that are sent.",
    ),
    (
        "duplicate-record", 409, "Record id already used",
        "A record's id is twice in the batch or already in the log. An id names one record for ever.",
        "Make a new UUIDv7 for each record; send a correction to restate figures.",
    ),
    (
        "unknown-document", 422, "Deployment, factor set or price book not in the log",
        "A record refers to a deployment or factor set, or a batch to a price book, by a digest that was "
        "never published in this log.",
        "Publish the document first: a deployment, factors or prices statement to /entries.",
    ),
    (
        "bad-price-book", 422, "Price book not usable",
        "A price book contradicts itself: rates out of order or double, a name that stands for two models, a "
        "period that ends before it begins, or it is too large to be logged.",
        "Correct what `detail` names; `tallystick prices make` writes sound ones.",
    ),
    (
        "inconsistent-record", 422, "Record inconsistent in itself",
        "Members of a record contradict each other, such as an end before the start.",
        "Correct the member that `detail` names.",
    ),
    (
        "total-too-large", 422, "Total too large",
        "A sum over the batch passes 2^53 - 1.",
        "Split the batch.",
    ),
    (
        "time-in-future", 422, "Time in the future",
        "A time lies further ahead of the log's clock than clocks may differ.",
        "Set the clock; times are Unix microseconds.",
    ),
    (
        "time-too-old", 422, "Time too old",
        "A time lies before 2020: a clock that was never set, or another unit.",
        "Set the clock; times are Unix microseconds.",
    ),
    # --- tenants -------------------------------------------------------------------------------------
    (
        "other-tenant", 403, "Not your tenant's alone",
        "The key is bound to a tenant, and the request is about more than that tenant's own records. The "
        "answer is the same whether or not there is anything of anybody else.",
        "Ask about your own records, or use a key that is not bound to a tenant.",
    ),
    (
        "bad-tenant", 400, "Tenant not usable",
        "A tenant is the pseudonym that its records carry: letters, digits and `. _ : ~ -`, at most 64.",
        "Use that pseudonym.",
    ),
    (
        "too-many-requests", 429, "Too many requests",
        "The caller asks for more in a second than one may.",
        "Send again after the time that `Retry-After` names.",
    ),
    # --- enrolment -----------------------------------------------------------------------------------
    (
        "wrong-invite", 403, "Invitation not valid",
        "The token enrols nobody: it is malformed, unknown, used or run out. It is not told which.",
        "Ask an administrator of this log for another one.",
    ),
    (
        "bad-proof", 422, "Possession not proven",
        "The proof is not a signature by the key over the claim for this log, token, issuer and key.",
        "Sign with the private half of the key that is to be enrolled: `tallystick issuers enrol` does.",
    ),
    # --- reading -------------------------------------------------------------------------------------
    (
        "out-of-range", 400, "Tree size or index out of range",
        "The log has no such tree size, or the leaf is not in the tree of that size.",
        "Use sizes up to that of the newest checkpoint, and an index below the size.",
    ),
    (
        "bad-entry-id", 400, "Not an entry id",
        "An entry is named by its leaf index in decimal or its leaf hash in 64 hex digits.",
        "Take the address from the `Location` header that registration gave.",
    ),
    (
        "bad-record-id", 400, "Not a record id",
        "A record is named by its UUID, in the usual form with dashes.",
        "Take the id that the recorder gave.",
    ),
    (
        "no-records", 404, "Statement has no records",
        "The entry exists, but is of a kind that has no records.",
        "Ask for the records of a batch.",
    ),
    (
        "erased", 410, "Records erased",
        "The record bytes were removed under a rule that an erasure statement names. Their hashes stay.",
        "See the erasure statement in the log.",
    ),
    # --- the service ---------------------------------------------------------------------------------
    (
        "overloaded", 503, "Overloaded",
        "The service has as much work as it can hold. Nothing was registered.",
        "Send again after the time that `Retry-After` names.",
    ),
    (
        "stopping", 503, "Stopping",
        "The service is being stopped and takes no new statements.",
        "Send again: a statement that was logged gives the same receipt.",
    ),
    (
        "storage-failed", 503, "Storage failed",
        "The database did not confirm: a full disk, a lost connection, a broken disk. Mostly nothing was "
        "registered. After an I/O error, nothing is served until the service is started anew.",
        "Send again later: what was registered after all gives its receipt. The operator finds the reason in "
        "the service's log.",
    ),
    (
        "no-log", 500, "No log",
        "The database has no log in it.",
        "The operator makes one with `tallystick init`.",
    ),
    (
        "missing-tile", 500, "Tile missing",
        "A tile of the tree is missing from the database or too narrow.",
        "The operator audits the database and restores a good copy.",
    ),
    (
        "inconsistent-log", 500, "Log inconsistent",
        "Head, checkpoint, tiles and statements contradict each other.",
        "The operator audits the database and restores a good copy.",
    ),
    (
        "log-rolled-back", 500, "Log rolled back",
        "The database is older than a checkpoint that was published or a tree that was committed.",
        "The operator stops all replicas and restores the newest copy.",
    ),
    (
        "fence-lost", 500, "Fence lost",
        "Another writer changed the log past its lock. Nothing was registered.",
        "The operator lets nothing but this service write to the database.",
    ),
    (
        "internal", 500, "Internal error",
        "The service met an error that it did not expect. The details are in its log, under the problem's "
        "`instance`.",
        "Send again later; a statement that was logged gives the same receipt.",
    ),
    # --- one for each class of error, for codes without an entry of their own ------------------------
    ("error", 500, "Error", "Something failed.", "See `detail`."),
    ("invalid", 400, "Invalid", "The input is malformed.", "See `detail`."),
    ("refused", 409, "Refused", "The log's rules or state forbid it.", "See `detail`."),
    (
        "unavailable", 503, "Unavailable",
        "Something that the service needs is not there now.",
        "Send again later; a statement that was logged gives the same receipt.",
    ),
    (
        "corrupt", 500, "Evidence does not verify",
        "What the log stored does not verify: it was changed, cut or mixed up.",
        "Keep what you hold, and tell the operator and the auditor.",
    ),
    # --- budgets -------------------------------------------------------------------------------------
    (
        "bad-budget", 422, "Bad budget",
        "The budget's name, measure, limit, window, tenant, currency or alerts are not usable.",
        "See the members of `POST /budgets`; `where` names the one that is wrong.",
    ),
    (
        "log-frozen", 409, "Log frozen",
        "The log takes nothing any more: its operator closed it, for instance at the end of a year.",
        "Log with its successor, which the message and GET /log name.",
    ),
    (
        "other-log-key", 500, "Another log key is in force",
        "The log's key was rotated, but this service still holds the one before.",
        "The operator starts it again with the new key.",
    ),
    # --- queries -------------------------------------------------------------------------------------
    (
        "query-too-large", 422, "Query too large",
        "The question would add up more roll-ups, or read more records, than one request may cost.",
        "Ask for a shorter period, one tenant or one model; or ask an export, which answers for any.",
    ),
)  # fmt: skip
