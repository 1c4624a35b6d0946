"""Problems that other parts of Tallystick name by the same codes, in errors and ``--json`` output.

The service answers with none of them, but explains them, so that every code has one meaning and one place.
The status is the one that would fit.
"""

from __future__ import annotations

__all__ = ["LOCAL_TABLE"]

LOCAL_TABLE: tuple[tuple[str, int, str, str, str], ...] = (
    (
        "other-key", 422, "Made by another key",
        "The receipt was signed by another key than the one it is checked against.",
        "Use the verifier key of the log that issued it.",
    ),
    (
        "other-subject", 422, "About something else",
        "The receipt is about another subject than the statement.",
        "Pair each receipt with its own statement.",
    ),
    (
        "quorum-missed", 422, "Too few witnesses",
        "Fewer known witnesses cosigned the checkpoint than the quorum asks for.",
        "Fetch a proof whose checkpoint has more cosignatures.",
    ),
    (
        "bad-opening", 422, "Opening does not fit",
        "The opened content does not hash to the commitment.",
        "Check salt and content; each record has its own salt.",
    ),
    (
        "bad-chunk", 422, "No such chunk",
        "The commitment has no chunk of this index.",
        "Use an index below the number of chunks.",
    ),
    (
        "bad-salt", 422, "Salt of the wrong size",
        "A salt has 32 bytes.",
        "Derive salts as `ledger.core.commitments` does.",
    ),
    (
        "bad-secret", 422, "Secret too short",
        "A secret has at least 32 bytes.",
        "Make secrets from the system's random source.",
    ),
    (
        "bad-token", 422, "Not a token id",
        "Token ids are integers from 0 to 2^32 - 1.",
        "Pass the ids that the engine reported.",
    ),
    (
        "exists", 409, "Already exists",
        "What was to be made is there already and is never overwritten.",
        "Name another one.",
    ),
    (
        "no-backup", 404, "No backup",
        "The folder holds no backup, or one that cannot be read.",
        "Name the folder that `tallystick backup` wrote.",
    ),
    (
        "malformed-backup", 422, "Backup malformed",
        "The backup's manifest, signature or tables do not have the form of a backup.",
        "Copy the whole backup again, or use another one.",
    ),
    (
        "backup-files", 422, "Backup's files changed",
        "A file of the backup is missing, or is not the one that the signed manifest lists.",
        "Copy the whole backup again, or use another one.",
    ),
    (
        "bad-window", 422, "Bad window",
        "A window of measured energy is empty, or begins before the one before it ends.",
        "Read the meter in order, by one steady clock.",
    ),
    (
        "meter-reset", 503, "Meter started anew",
        "The energy counter was set back, or not read for too long: what was used meanwhile is not known.",
        "Nothing: the next window counts again. Records of the window that is missing have no energy.",
    ),
    (
        "bad-trace", 422, "Bad power trace",
        "A trace of power or energy cannot be read, or its time or energy falls.",
        "Give a CSV file with a header, rising times, and a unit at the end of the value's column name.",
    ),
    (
        "not-in-flight", 409, "No such generation in flight",
        "A record names an id that `begin` did not give, or that has its record already.",
        "Call `begin` once for each record, and end it once, by `record`, `abandon` or `lose`.",
    ),
    (
        "bad-setting", 500, "Bad setting",
        "A setting is out of its range.",
        "See the reference of settings.",
    ),
    (
        "not-started", 503, "Server did not start",
        "The server could not listen on its address.",
        "See its log; perhaps the port is in use.",
    ),
    (
        "bad-text", 400, "Not Unicode text",
        "The text has half a surrogate pair, so it has no UTF-8 form.",
        "Pass text that is valid Unicode.",
    ),
    (
        "bad-time", 400, "Not a time span of the past",
        "A generation ends before it starts, or its times are not plausible.",
        "Pass Unix microseconds.",
    ),
    (
        "no-deployment", 400, "No deployment is known",
        "A record names what generated it, and none was given.",
        "Give a deployment to the recorder or to the call.",
    ),
    (
        "bad-url", 400, "Address not usable",
        "The URL is not one that can be used.",
        "Use one such as `https://ledger.example.com`, and pass the API key apart from it.",
    ),
    (
        "bad-identity-file", 400, "File of providers not usable",
        "The file that `TALLYSTICK_IDENTITY_FILE` names cannot be read, or says what cannot be.",
        "Compare it with the page on tenants and keys.",
    ),
    (
        "not-purged", 503, "Database not written anew",
        "Others use the database, so that it could not be written anew without the bytes that were erased.",
        "Run `tallystick erase --purge` when less goes on.",
    ),
    (
        "bad-retention", 422, "Retention not possible",
        "A policy is for records or credentials, and keeps records for six months at least.",
        "Choose a longer time; erase single records under another rule with `tallystick erase`.",
    ),
    (
        "legal-hold", 409, "Under a legal hold",
        "A legal hold is on these records, and so they may not be erased.",
        "Lift the hold first, if it no longer applies.",
    ),
    (
        "internal-address", 403, "Internal address",
        "The URL leads to a host of this machine or network, or is plain http, which only hosts may be that "
        "the operator allows.",
        "Use https and a public address, or name the host in `TALLYSTICK_INTERNAL_HOSTS`.",
    ),
    (
        "bad-reach", 400, "List of internal hosts not usable",
        "An entry of the list of internal hosts is neither a host name nor a network.",
        "Separate entries by commas: `witness.internal:8443, 10.2.0.0/16`.",
    ),
    (
        "bad-api-key", 400, "API key has impossible characters",
        "The API key cannot be one: it would not fit into an HTTP header.",
        "Pass the token exactly as it was made.",
    ),
    (
        "ledger-unreachable", 503, "Ledger not reachable",
        "The emitting process cannot reach the ledger. Statements wait in its spool.",
        "Nothing, if the ledger comes back; else check address and network.",
    ),
    (
        "other-log", 422, "Receipt of another log",
        "The receipt comes from another log than the one that this process was set up for.",
        "Check the ledger's address and the verifier key that was pinned.",
    ),
    (
        "other-issuer", 409, "Spool of another issuer",
        "The spool directory holds the chain of another issuer.",
        "Use one spool directory for each issuer.",
    ),
    (
        "spool-full", 503, "Spool full",
        "The spool has reached its limit; records are counted as dropped until there is room.",
        "Restore the connection to the ledger, or raise the limit.",
    ),
    (
        "spool-unavailable", 503, "Spool not usable",
        "The spool's directory cannot be opened or written.",
        "Name a directory on a local disk that the process may write, with room.",
    ),
    (
        "spool-corrupt", 500, "Spool damaged",
        "A file of the spool was cut or changed, or does not follow the chain.",
        "Check the disk; restore the spool, or move it away and register a new issuer name.",
    ),
    (
        "bad-model", 400, "No model there",
        "What was named as a model is no folder or file that can be read whole.",
        "Name the folder or file that the model is in, and download it again if a part is missing.",
    ),
    (
        "model-unverified", 422, "Model does not verify",
        "The model is signed, and its files, the signature and the trusted key do not fit together.",
        "Download the model and its signature again, name the key that signed it in TALLYSTICK_MODEL_TRUST, "
        "and install the extra `model-signing`.",
    ),
    (
        "bad-gguf", 400, "Not a GGUF file",
        "The model file is not GGUF, or was cut.",
        "Download the model again.",
    ),
    (
        "bad-power", 400, "Power or time not plausible",
        "Powers or times are negative, or their range is not in order.",
        "Check the deployment's rated power and the units.",
    ),
    (
        "bad-weights", 400, "Weights not usable",
        "An amount cannot be divided: weights are negative or all zero.",
        "Pass at least one positive weight.",
    ),
    (
        "figure-too-large", 422, "Figure too large",
        "An energy or carbon figure passes 2^53 - 1.",
        "Check the units of the factor set and of the energy.",
    ),
    (
        "bad-factor", 422, "Factor not plausible",
        "A factor is negative, or outside of what it can be.",
        "Check the units: PUE is stated times 1,000, intensities in micrograms for each kWh.",
    ),
    (
        "bad-range", 422, "Range not in order",
        "A figure is not between the ends of its own range.",
        "Check which end is which.",
    ),
    (
        "unknown-provider", 422, "Provider not known",
        "No table or package that is installed knows this provider.",
        "Use one of those that the message names.",
    ),
    (
        "unknown-model", 422, "Model not known",
        "No table or package that is installed knows this model, or no list price fits a pattern.",
        "State the model's size instead, or leave its energy out.",
    ),
    (
        "bad-invoice", 422, "Invoice cannot be read or compared",
        "An invoice's file is of another form than it was read as, or its lines overlap in time.",
        "Name the columns with --column; docs/how-to/costs.md describes the forms.",
    ),
    (
        "bad-assumptions", 422, "Assumptions cannot be read",
        "The file of what own hardware costs is no JSON, or lacks a field.",
        "See docs/how-to/costs.md for its fields.",
    ),
    (
        "unknown-zone", 422, "Zone not known",
        "No package that is installed has factors for this grid zone or cloud region.",
        "See `tallystick factors list`, or state the factors yourself.",
    ),
    (
        "unknown-accelerator", 422, "Accelerator not known",
        "The table of accelerators does not have this one.",
        "State its speed, bandwidth and power instead.",
    ),
    (
        "intensity-unavailable", 503, "Live grid intensity not available",
        "The service that measures the grid gave no usable answer.",
        "Check key, zone and connection; until then the static factor set is used.",
    ),
    (
        "no-meter", 503, "Energy counter not readable",
        "The counter exists, but this process may not read it.",
        "Give the process read permission, or run without this meter.",
    ),
    (
        "directory-not-empty", 409, "Directory not empty",
        "An export is never merged into another directory.",
        "Name a new directory.",
    ),
    (
        "export-failed", 503, "Export not written",
        "The export could not be written; nothing is left behind, unless it was to be resumed.",
        "Make room, or write to another disk.",
    ),
    (
        "export-busy", 409, "Export under way",
        "Another process is making or adding to the export in this place.",
        "Wait for it, then run the command again.",
    ),
    (
        "export-differs", 409, "Another export",
        "An export is added to only with the same log, period and choice of statements.",
        "Give the same options as before, or name a new folder.",
    ),
    (
        "export-erased", 409, "Export holds erased records",
        "Records were erased from the log since the export was made, and their bytes may be in it.",
        "Export anew into another folder, and remove the old one.",
    ),
    (
        "collector-failed", 503, "Spans not taken",
        "The OpenTelemetry collector did not take the spans of an export.",
        "See the collector's log; sending again repeats spans, with the same ids.",
    ),
    (
        "export-files", 500, "Export incomplete or changed",
        "The files of an export are not those that its manifest lists.",
        "Copy the whole export again.",
    ),
    (
        "malformed-manifest", 400, "Malformed manifest",
        "The manifest of an export or its signature is not of the form that exports have.",
        "Copy the whole export again.",
    ),
    (
        "no-such-file", 400, "No such file",
        "The file that was named is not there.",
        "Check the path.",
    ),
    (
        "not-evidence", 400, "Not evidence",
        "The file or folder is none that proves something by itself: a database, or no export.",
        "Audit a ledger's folder or database: `tallystick audit`.",
    ),
    (
        "unreadable", 503, "Not readable",
        "The source of an audit cannot be read.",
        "Check path, permissions and connection.",
    ),
    (
        "bad-record", 500, "Record does not verify",
        "An audited record is not what its statement commits to.",
        "Keep the evidence, and ask the operator.",
    ),
    (
        "bad-receipt", 500, "Receipt does not verify",
        "An audited receipt does not prove its statement in this log.",
        "Keep the evidence, and ask the operator.",
    ),
    (
        "bad-checkpoint", 500, "Checkpoint does not verify",
        "An audited checkpoint is not one that the log's key signed over this tree.",
        "Keep the evidence, and ask the operator.",
    ),
    (
        "bad-known-checkpoint", 400, "Known checkpoint does not verify",
        "A checkpoint that was passed to the audit is not by this log's key.",
        "Pass only checkpoints that this log's key signed.",
    ),
    (
        "unreachable", 503, "Service not reachable",
        "The service at the URL does not answer.",
        "Check the address and that the service runs.",
    ),
    (
        "too-slow", 503, "Answer too slow",
        "A service began to answer, or seemed to, but did not end in the time for a whole answer.",
        "Try again later; where it goes on, ask the operator.",
    ),
    (
        "not-given", 503, "Service did not give it",
        "An audited service refused or failed to give a part of its log.",
        "Pass an API key of scope read, and ask the operator.",
    ),
    (
        "insecure", 409, "API key would travel in the clear",
        "The URL is plain HTTP and not of this machine.",
        "Use https, or reach the service on this machine.",
    ),
    (
        "no-ledger", 400, "Not a ledger's folder",
        "The folder is not one that `tallystick init` made.",
        "Name that folder, or the URL of a service.",
    ),
    (
        "malformed-report", 422, "Not a report",
        "The file beside the report is not the signature of a report.",
        "Name the folder that `tallystick report make` wrote.",
    ),
    (
        "bad-inputs", 422, "Inputs file malformed",
        "The inputs file does not have the form that reports read, or a value is no decimal number.",
        "See the message and the reference of reports.",
    ),
    (
        "bad-report-kind", 400, "No such report",
        "There is no report of this name.",
        "Use one that `tallystick report kinds` lists.",
    ),
    (
        "bad-report-scope", 400, "Not the scope of this report",
        "The report is about one tenant or one record, and the scope names none or several; or its period "
        "ends before it begins.",
        "Name it: `--where tenant=PSEUDONYM` or `--where record=ID`.",
    ),
    (
        "bad-record-trace", 422, "Trace does not verify",
        "A part of the trace of a record does not follow from the log.",
        "Make the trace again from an export that verifies; keep this one as evidence.",
    ),
    (
        "no-export", 400, "Not an export",
        "The folder has no manifest of an export.",
        "Make an export with `tallystick export parquet`, and name its folder.",
    ),
    (
        "bad-sql", 400, "Query refused",
        "DuckDB did not take the query, or it is not one query.",
        "See the message; the views are records, records_corrected, corrections and statements.",
    ),
    (
        "missing-package", 503, "Package missing",
        "A command needs an optional package that is not installed.",
        "Install the extra that the message names.",
    ),
    (
        "io", 503, "File or network failed",
        "The operating system could not read or write.",
        "See the message: permissions, space, connection.",
    ),
    (
        "database", 503, "Database failed",
        "The database could not be read or written.",
        "See the message: permissions, space, connection.",
    ),
    (
        "database-too-old", 400, "Database lacks migrations",
        "The database's tables are those of an older version.",
        "Run `tallystick db upgrade`; replicas that run may go on.",
    ),
    (
        "database-too-new", 400, "Database of a newer version",
        "A newer version of the software migrated the database.",
        "Run the version that migrated it, as the other replicas do.",
    ),
    (
        "other-tables", 500, "Tables were changed",
        "The database's tables, columns or indexes are not those that the migrations make.",
        "Undo what was changed by hand; see the reference of the database.",
    ),
    (
        "database-busy", 503, "Table in use",
        "A migration did not get its table in time: exports, audits or statements use it.",
        "Run it again later. What was migrated before stays.",
    ),
    (
        "standby-database", 503, "Database is a standby",
        "The database takes nothing and may lag behind its primary.",
        "Name the primary; several hosts with `target_session_attrs=read-write` in the URL find it.",
    ),
    (
        "not-durable", 503, "Database not durable",
        "The database server runs without fsync or full_page_writes, so a crash undoes what it acknowledged.",
        "Set both to on in postgresql.conf.",
    ),
    (
        "binary", 400, "Binary output on a terminal",
        "The output is binary and would garble a terminal.",
        "Write it to a file, or pipe it on.",
    ),
    (
        "not-logged", 503, "Not logged in time",
        "A record did not reach the log within the time that the command waits.",
        "Read the logs of the emitting process and of the service.",
    ),
    (
        "child-ended", 503, "Child process ended",
        "A process that the command started ended before its work was done.",
        "See its output.",
    ),
    (
        "child-slow", 503, "Child process too slow",
        "A process that the command started did not answer in time.",
        "Try again on a machine with less to do.",
    ),
    (
        "bad-manifest", 500, "Manifest does not verify",
        "The manifest of an audited export is not signed by the log's key, or is of another log.",
        "Fetch the export again, and ask who made it.",
    ),
    (
        "bad-inclusion-proof", 500, "Inclusion proof does not verify",
        "A proof in an audited export does not lead to the log's root.",
        "Keep the evidence, and ask who made the export.",
    ),
    (
        "bad-target", 422, "Nothing that can be audited",
        "The address names neither a service, nor a database, nor a ledger's folder, nor an export.",
        "Name one of these; see `tallystick audit --help`.",
    ),
    (
        "bad-record-proof", 422, "Record proof does not hold",
        "Record, position, path, statement or leaf index of a record proof do not fit each other.",
        "Get the proof again; if it stays so, keep both and ask who changed it.",
    ),
    (
        "forked", 422, "Two trees of one size",
        "Two things that the log signed for one size have different roots: it showed two histories.",
        "Keep both: together they prove it.",
    ),
    (
        "no-spool", 404, "No spool here",
        "The directory holds no spool of a recorder.",
        "Name the recorder's spool directory, or set `TALLYSTICK_SPOOL`.",
    ),
    (
        "no-chain", 403, "Place in the chain not told",
        "The ledger does not say where the issuer's chain stands, so it cannot be mended or restored.",
        "Register the issuer; use an API key of scope `emit` or `read`.",
    ),
    (
        "ledger-behind", 409, "The ledger lost statements",
        "The ledger gave a receipt for a statement and now does not have it: it was rolled back, or it lies.",
        "Keep the spool and all receipts, and ask the ledger's operator. Nothing is counted as dropped.",
    ),
    (
        "spool-waiting", 503, "Statements of the old key wait",
        "A key cannot be revoked yet: statements that it signed still wait in the spool.",
        "Send them with `tallystick spool flush`, then revoke the key.",
    ),
    (
        "bad-evaluation", 422, "Evaluation not sound",
        "A file of quality metrics has a value that is no exact decimal number, lies outside of the metric's "
        "known range, or does not say what was evaluated.",
        "Mend the row that the message names; see the how-to page about evaluations.",
    ),
    (
        "bad-correction", 422, "Correction not sound",
        "A correction names no reason or figure, has a figure that is no whole number, or does not fit its "
        "record.",
        "Mend the row that the message names; see the how-to page about corrections.",
    ),
    (
        "bad-policy", 422, "Bad trust policy",
        "A trust policy does not follow C2SP tlog-policy, or lacks what it is used for.",
        "See the line that the error names; `docs/how-to/witness.md` has an example.",
    ),
    (
        "bad-witness-request", 400, "Bad request to a witness",
        "A body of the witness protocol does not follow C2SP tlog-witness.",
        "Send the old size, the proof, an empty line and the checkpoint, as the specification says.",
    ),
    (
        "no-witness", 404, "No witness here",
        "The folder holds no witness.",
        "Make one with `tallystick witness init`.",
    ),
    (
        "bad-witness-state", 500, "Witness state not usable",
        "What a witness remembers is damaged, or was written by another version.",
        "Never restore an older copy: it could cosign a fork. Make a new witness with new keys.",
    ),
    (
        "witness-refused", 403, "Witness refuses",
        "The witness does not know the log or its key, or takes the request for malformed.",
        "Ask its operator to add the log with its present verifier key.",
    ),
    (
        "witness-unavailable", 503, "No answer from a witness",
        "The witness cannot be reached, or answers with something else than a cosignature.",
        "It is asked again by itself; see its address in the policy, and its operator's notices.",
    ),
    (
        "bad-settlement", 422, "Settlement bundle does not hold",
        "A line of a settlement bundle does not follow from the log, is out of its place, or was changed.",
        "Keep the file as evidence, and get the bundle again from the operator.",
    ),
    (
        "bad-dispute", 422, "Dispute cannot be made or does not hold",
        "The customer's own log cannot be read, or a dispute file was changed or is about another bundle.",
        "Mend the row that the message names; see the how-to page about settlements.",
    ),
    # --- forecasts -----------------------------------------------------------------------------------
    (
        "short-history", 422, "History too short",
        "There are too few whole periods to tell how far off a forecast would be.",
        "Wait until there are as many as the message says, or forecast fewer periods.",
    ),
    (
        "bad-monitor-state", 500, "Monitor's memory not usable",
        "What a monitor remembers of a log is damaged, or is about another log.",
        "Restore it from a backup: without it, a fork of what was seen before would pass.",
    ),
    (
        "not-confirmed", 409, "Not confirmed",
        "What was asked for cannot be undone, and it was not said that it is meant.",
        "Read what the command does, then say `--yes`.",
    ),
    (
        "key-device", 503, "Key device does not answer",
        "The token that holds the key does not sign, or its library cannot be used.",
        "See that the device is connected, and that the PKCS #11 library works.",
    ),
    (
        "stale", 503, "Nothing new for long",
        "The log did not grow, or was not cosigned, for longer than the monitor was told to accept.",
        "Ask the log's operator; compare with what others are shown.",
    ),
    (
        "bad-entries", 422, "Entries do not fit",
        "A bundle or tile of the log has the wrong form, or the entries do not hash to its checkpoint.",
        "Keep it, and ask the log's operator.",
    ),
)  # fmt: skip
