"""The CDDL (RFC 8610) of everything that is CBOR. Kept by hand; a test checks it against real messages."""

from __future__ import annotations

__all__ = ["CDDL", "ROOT_RULES"]

ROOT_RULES = (
    "statement",
    "transparent-statement",
    "receipt",
    "inclusion-proof",
    "batch-body",
    "cose-key",
    "cose-key-set",
    "export-signature",
    "settlement-seal",
    "file-signature",
    "enrolment-proof",
)
"""The rules that describe a whole message; the others are parts of these."""

CDDL = """\
; Tallystick, version 1: everything that is CBOR, in CDDL (RFC 8610).
;
; Every item is in deterministic encoding (RFC 8949, section 4.2.1): definite lengths, shortest integers,
; sorted unique keys, nothing after the end. A reader refuses any other spelling. Map keys and algorithm
; numbers are those of the IANA registries for COSE and CWT; their names are in the comments.

; --- statements: what issuers sign; the leaves of the log (RFC 9943, RFC 9052) ---

; The entry of a leaf, at most 65,535 bytes. The leaf hash is SHA-256(0x00 || entry).
statement = #6.18([
  protected: bstr .cbor statement-header,
  unprotected: {},
  payload: json,
  signature: signature,
])

; The same statement with its receipts attached. Without them it is the entry again.
transparent-statement = #6.18([
  protected: bstr .cbor statement-header,
  unprotected: { 394 => [+ bstr .cbor receipt] },   ; receipts
  payload: json,
  signature: signature,
])

statement-header = {
  1 => alg,
  3 => "application/vnd.tallystick.statement+json",  ; content type
  4 => kid,
  15 => { 1 => issuer, 2 => subject },               ; CWT claims: iss, sub
}

; Canonical JSON (RFC 8785): one of statements/*.schema.json, told apart by its member "kind".
json = bstr

; --- receipts: the log's proof that a statement is in it (RFC 9942) ---

receipt = #6.18([
  protected: bstr .cbor receipt-header,
  unprotected: { 396 => { -1 => [bstr .cbor inclusion-proof] } },  ; verifiable data proofs: inclusion
  payload: nil,                                      ; detached: the root that the proof leads to
  signature: signature,
])

receipt-header = {
  1 => alg,
  4 => kid,
  15 => { 1 => origin, 2 => subject, 6 => uint },    ; CWT claims: the log, the statement's subject, iat (s)
  395 => 1,                                          ; verifiable data structure: RFC9162_SHA256
  -65600 => uint,                                    ; private use: the proof's tree-size, signed
}

inclusion-proof = [
  tree-size: uint,
  leaf-index: uint,
  path: [0*63 hash],                                 ; the leaf's sibling first
]

; --- sending a batch: POST /batches, application/vnd.tallystick.batch+cbor ---

batch-body = [
  statement: bstr .cbor statement,
  records: bstr,                                     ; canonical JSON, each record ended by a newline
]

; --- keys (RFC 9052 section 7, RFC 9964) ---

cose-key = ed25519-key / es256-key / ml-dsa-44-key

ed25519-key = { 1 => 1, ? 2 => kid, ? 3 => -8 / -19, -1 => 6, -2 => bytes32 }
es256-key = { 1 => 2, ? 2 => kid, ? 3 => -7, -1 => 1, -2 => bytes32, -3 => bytes32 }
ml-dsa-44-key = { 1 => 7, ? 2 => kid, 3 => -48, -1 => bstr .size 1312 }

; GET /.well-known/scitt-keys
cose-key-set = [+ cose-key]

; --- exports: manifest.cose ---

export-signature = #6.18([
  protected: bstr .cbor export-header,
  unprotected: {},
  payload: nil,                                      ; detached: the bytes of manifest.json
  signature: signature,
])

export-header = {
  1 => alg,
  3 => "application/vnd.tallystick.export+json",     ; content type
  4 => kid,
  15 => { 1 => origin, 2 => "tallystick:export" },   ; CWT claims: the log, sub
}

; --- settlement bundles: the last line; its payload is of settlement/contents.schema.json ---

settlement-seal = #6.18([
  protected: bstr .cbor settlement-header,
  unprotected: {},
  payload: json,
  signature: signature,
])

settlement-header = {
  1 => alg,
  3 => "application/vnd.tallystick.settlement+json", ; content type
  4 => kid,
  15 => { 1 => origin, 2 => "tallystick:settlement" }, ; CWT claims: the log, sub
}

; --- reports, disputes and backups: signed beside their bytes ---

file-signature = #6.18([
  protected: bstr .cbor file-header,
  unprotected: {},
  payload: nil,                                      ; detached: the canonical JSON that it is beside
  signature: signature,
])

file-header = {
  1 => alg,
  3 => file-type,                                    ; content type
  4 => kid,
  15 => { 1 => issuer, 2 => file-subject },          ; CWT claims: who signs, sub
}

file-type = "application/vnd.tallystick.report+json" / "application/vnd.tallystick.dispute+json" /
  "application/tallystick-backup+json"
file-subject = tstr .regexp "tallystick:(report|backup|dispute:[0-9a-f]{64})"

; --- enrolling a key: the proof that its holder has the private half (docs/how-to/tenants.md) ---

enrolment-proof = #6.18([
  protected: bstr .cbor enrolment-header,
  unprotected: {},
  payload: nil,                                      ; detached: the claim about log, token, issuer and key
  signature: signature,
])

enrolment-header = { 1 => alg, 4 => kid }

; --- parts ---

; EdDSA over Ed25519; Ed25519 (RFC 9864, read but not written); ES256 (low s only); ML-DSA-44.
alg = -8 / -19 / -7 / -48
signature = bstr .size 64 / bstr .size 2420

; COSE Key Thumbprint (RFC 9679), SHA-256.
kid = bytes32

issuer = tstr .regexp "[A-Za-z0-9]([A-Za-z0-9._~:/-]{0,253}[A-Za-z0-9])?"
origin = issuer
subject = tstr .regexp "tallystick:[a-z]+:[A-Za-z0-9._:~-]*"
hash = bytes32
bytes32 = bstr .size 32
"""
