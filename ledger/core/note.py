"""Owns signed notes and verifier keys: their text forms, Ed25519 signing and verification (C2SP signed-note).

A note is a text, an empty line, and signature lines. The text means nothing until a signature by a known key
has been verified. Cosignatures are note signatures too; `ledger.core.cosignature` makes and verifies those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger.core._text import decode_base64, encode_base64, is_clean
from ledger.core.errors import CorruptError, InvalidError

__all__ = [
    "COSIGNATURE_ED25519",
    "COSIGNATURE_ML_DSA_44",
    "ED25519",
    "Note",
    "NoteSignature",
    "VerifierKey",
    "format_note",
    "format_vkey",
    "key_id",
    "keys_by_id",
    "parse_note",
    "parse_vkey",
    "sign_ed25519_note",
    "verify_note",
]

ED25519 = 0x01
COSIGNATURE_ED25519 = 0x04
COSIGNATURE_ML_DSA_44 = 0x06

_PUBLIC_KEY_SIZES = {ED25519: 32, COSIGNATURE_ED25519: 32, COSIGNATURE_ML_DSA_44: 1312}
_KEY_ID_SIZE = 4
_DASH = "\u2014"
_HEX_KEY_ID = re.compile(r"[0-9a-f]{8}")

# A note may carry ML-DSA-44 cosignatures of 3.3 kB each; the specification asks to accept at least 16.
MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 64


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line.

    Args:
        name: the key's name.
        key_id: the four bytes that, with the name, tell which key and algorithm made it.
        signature: the bytes after the key ID.
    """

    name: str
    key_id: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.key_id) != _KEY_ID_SIZE or not self.signature:
            raise InvalidError(
                "A note signature is a 4-byte key ID and at least one byte more",
                where=f"signature by {self.name}",
                remedy="fetch the note again",
            )


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures, not yet verified.

    Args:
        text: what is signed, with its final newline.
        signatures: in the order of their lines.
    """

    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name and key ID its signatures carry; make one with :meth:`of` or a vkey text.

    Args:
        name: the key's name.
        key_id: the first four bytes of the hash over name, type and public key.
        sig_type: one of the signature type constants of this module.
        public_key: its raw encoding: 32 bytes for Ed25519, 1,312 for ML-DSA-44.
    """

    name: str
    key_id: bytes
    sig_type: int
    public_key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        size = _PUBLIC_KEY_SIZES.get(self.sig_type)
        if size is None:
            raise InvalidError(
                f"Signature type 0x{self.sig_type:02x} is not supported",
                where=f"verifier key {self.name}",
                remedy="use an Ed25519 (01), Ed25519 cosignature (04) or ML-DSA-44 cosignature (06) key",
            )
        if len(self.public_key) != size:
            raise InvalidError(
                f"The public key has {len(self.public_key)} bytes instead of {size}",
                where=f"verifier key {self.name}",
                remedy="copy the whole key",
            )
        if self.key_id != key_id(self.name, self.sig_type, self.public_key):
            raise InvalidError(
                "The key ID does not belong to this name and public key",
                where=f"verifier key {self.name}",
                remedy="copy the key again, name included",
            )

    @classmethod
    def of(cls, name: str, sig_type: int, public_key: bytes) -> VerifierKey:
        """Return the verifier key of a name, signature type and raw public key, with its ID computed."""
        return cls(name, key_id(name, sig_type, public_key), sig_type, public_key)


def key_id(name: str, sig_type: int, public_key: bytes) -> bytes:
    """Return the four bytes that identify a key beside its name."""
    _check_name(name)
    return sha256(name.encode() + b"\n" + bytes([sig_type]) + public_key).digest()[:_KEY_ID_SIZE]


def parse_vkey(text: str) -> VerifierKey:
    """Return the key that a vkey text ``<name>+<hex key ID>+<base64>`` spells."""
    name, plus, rest = text.partition("+")
    hex_id, more, encoded = rest.partition("+")
    if not plus or not more or not _HEX_KEY_ID.fullmatch(hex_id):
        raise InvalidError(
            f"{text[:80]!r} is not of the form <name>+<key ID, 8 hex digits>+<base64>",
            where="verifier key",
            remedy="copy the key exactly as its owner published it",
        )
    _check_name(name)
    material = decode_base64(encoded, f"verifier key {name}")
    if not material:
        raise InvalidError("The public key is missing", where=f"verifier key {name}", remedy="copy it whole")
    return VerifierKey(name, bytes.fromhex(hex_id), material[0], material[1:])


def format_vkey(key: VerifierKey) -> str:
    """Return the vkey text of a key."""
    return f"{key.name}+{key.key_id.hex()}+{encode_base64(bytes([key.sig_type]) + key.public_key)}"


def parse_note(data: bytes, *, max_bytes: int = MAX_NOTE_BYTES, max_signatures: int = MAX_SIGNATURES) -> Note:
    """Return the text and signatures that ``data`` holds; the exact inverse of :func:`format_note`."""
    if len(data) > max_bytes:
        raise _malformed(f"it has {len(data)} bytes, more than {max_bytes}")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    text, separator, block = whole.rpartition("\n\n")
    if not separator or not block.endswith("\n"):
        raise _malformed("it does not end with an empty line and signature lines")
    lines = block[:-1].split("\n")
    if len(lines) > max_signatures:
        raise _malformed(f"it has {len(lines)} signatures, more than {max_signatures}")
    text += "\n"
    _check_text(text)
    return Note(text, tuple(_parse_signature(line) for line in lines))


def format_note(note: Note) -> bytes:
    """Return the bytes of a note."""
    _check_text(note.text)
    if not note.signatures:
        raise _malformed("it has no signature")
    lines = [
        f"{_DASH} {each.name} {encode_base64(each.key_id + each.signature)}\n" for each in note.signatures
    ]
    return f"{note.text}\n{''.join(lines)}".encode()


def sign_ed25519_note(text: str, name: str, private_key: Ed25519PrivateKey) -> NoteSignature:
    """Return the Ed25519 signature of a note's text under a key name."""
    _check_text(text)
    public_key = private_key.public_key().public_bytes_raw()
    return NoteSignature(name, key_id(name, ED25519, public_key), private_key.sign(text.encode()))


def verify_note(note: Note, keys: Iterable[VerifierKey]) -> tuple[NoteSignature, ...]:
    """Return the signatures by known keys, at most one a key, all of them verified.

    Signatures by unknown keys are ignored, even if they share a name or an ID with a known one.

    Raises:
        CorruptError: a signature by a known key does not verify, or no known key signed.
        InvalidError: a key is not an Ed25519 note key, or two keys share name and ID.
    """
    known = keys_by_id(keys)
    for key in known.values():
        if key.sig_type != ED25519:
            raise InvalidError(
                f"A key of type 0x{key.sig_type:02x} cosigns checkpoints, not notes",
                where=f"verifier key {key.name}",
                remedy="pass it as a witness key",
            )
    verified: dict[tuple[str, bytes], NoteSignature] = {}
    for each in note.signatures:
        key_of = known.get((each.name, each.key_id))
        if key_of is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key_of.public_key).verify(each.signature, note.text.encode())
        except (InvalidSignature, ValueError):
            raise CorruptError(
                "The signature does not verify",
                where=f"signature by {each.name}",
                remedy="do not trust the note: its text or its signature was changed",
            ) from None
        verified.setdefault((each.name, each.key_id), each)
    if not verified:
        names = ", ".join(sorted({name for name, _ in known})) or "none"
        raise CorruptError(
            "No known key signed the note",
            where=f"known keys: {names}",
            remedy="check that you hold the signer's current verifier key",
        )
    return tuple(verified.values())


def keys_by_id(keys: Iterable[VerifierKey]) -> Mapping[tuple[str, bytes], VerifierKey]:
    """Return the keys by (name, key ID); two different ones under the same pair are refused as ambiguous."""
    known: dict[tuple[str, bytes], VerifierKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.key_id), key) != key:
            raise InvalidError(
                "Two different keys share a name and a key ID",
                where=f"verifier key {key.name}",
                remedy="remove the one you do not trust",
            )
    return known


def _parse_signature(line: str) -> NoteSignature:
    dash, _, rest = line.partition(" ")
    name, space, encoded = rest.partition(" ")
    if dash != _DASH or not space:
        raise _malformed("a line after its last empty line is not a signature")
    data = decode_base64(encoded, f"signature by {name[:80]}")
    return NoteSignature(name, data[:_KEY_ID_SIZE], data[_KEY_ID_SIZE:])


def _check_name(name: str) -> None:
    if not name or "+" in name or any(character.isspace() for character in name) or not is_clean(name):
        raise InvalidError(
            f"{name[:80]!r} cannot name a key",
            where="key name",
            remedy="use a name without spaces, plus signs and control characters, such as example.com/log",
        )


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise _malformed("its text does not end in a newline")
    if not is_clean(text):
        raise _malformed("it has control characters or is not UTF-8")


def _malformed(why: str) -> InvalidError:
    return InvalidError(f"The note is malformed: {why}", where="note", remedy="fetch it again")
