"""Commitments: salted hashes that hide tokens until their holder opens them, whole or one chunk.

Tokens are cut into chunks of 64 ids (uint32, little-endian). Each chunk is a leaf of an RFC 6962 tree::

    chunk_salt(i) = bytes [32 i, 32 i + 32) of SHAKE256("tallystick chunk v1" || salt)
    leaf(i)       = SHA-256(0x00 || chunk_salt(i) || chunk(i))
    digest        = SHA-256("tallystick commitment v1" || kind || uint64le(count) || root)

with ``kind`` one byte: ``t`` for tokens (count of ids), ``x`` for UTF-8 text (count of bytes; chunks of 256).
Every leaf has its own salt, so that opening one chunk shows nothing of its neighbours, whose
hashes are in the path: prompts can be guessed, salts of 256 bits cannot.

Salts derive by HKDF-SHA256 (RFC 5869) from the issuer's secret, the tenant's secret and the record's id.
Whoever holds both secrets can open any commitment later; dropping a tenant's secret makes that tenant's
commitments meaningless for ever. Record digests never contain a bare hash of text.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ledger.core import merkle
from ledger.core.errors import CorruptError, InvalidError
from ledger.native import hashing as _native
from ledger.native import parsing as _packing

__all__ = [
    "CHUNK_TOKENS",
    "ChunkOpening",
    "Opening",
    "commit_record",
    "commit_request",
    "commit_text",
    "commit_tokens",
    "open_chunk",
    "pack_ids",
    "pack_pair",
    "record_salt",
    "tenant_key",
    "token_bytes",
    "unpack_pair",
    "verify_chunk",
    "verify_opening",
]

CHUNK_TOKENS = 64
_CHUNK_BYTES = 4 * CHUNK_TOKENS
_SALT_BYTES = 32
_MAX_TOKEN = 2**32 - 1
_CHUNK_TAG = b"tallystick chunk v1"
_DIGEST_TAG = b"tallystick commitment v1"
_SALT_TAG = "tallystick salt v1"
_KINDS = {"tokens": b"t", "text": b"x"}
_index = struct.Struct("<Q").pack


@dataclass(frozen=True)
class Opening:
    """Shows everything a commitment hides: the salt and the content's bytes (uint32 LE or UTF-8)."""

    of: str
    salt: bytes
    content: bytes


@dataclass(frozen=True)
class ChunkOpening:
    """Shows one chunk: its own salt, its bytes, and its path to the root. Nothing of the other chunks."""

    of: str
    count: int
    index: int
    salt: bytes
    content: bytes
    path: tuple[bytes, ...]


def tenant_key(issuer_secret: bytes, tenant_secret: bytes) -> bytes:
    """HKDF-Extract of both secrets: keep it per tenant, expand it per record."""
    if len(issuer_secret) < _SALT_BYTES or len(tenant_secret) < _SALT_BYTES:
        raise InvalidError("a secret is shorter than 32 bytes", code="bad-secret")
    return hmac.digest(issuer_secret, tenant_secret, "sha256")


def record_salt(key: bytes, record_id: str, purpose: str) -> bytes:
    """HKDF-Expand to the 32-byte salt of one record's ``purpose`` (``input``, ``output``, ``request``)."""
    return _hmac(key, f"{_SALT_TAG}{record_id}/{purpose}\x01".encode())


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as uint32 little-endian.

    Raises:
        InvalidError: an id is not an integer within 32 bits.
    """
    if _packing is not None and (found := _packing.pack_tokens(tokens)) is not None:
        return found
    if isinstance(tokens, bytes | bytearray):
        tokens = list(tokens)  # ids below 256; ``array`` would take the bytes for its own memory
    try:
        packed = array("I", tokens)
    except (TypeError, OverflowError):
        raise InvalidError("a token id is not an integer within 32 bits", code="bad-token") from None
    if packed.itemsize != 4:  # no platform that CPython supports today
        return struct.pack(f"<{len(tokens)}I", *tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


_pair = struct.Struct("<qq").unpack_from
_PAIR_HEAD = 16

pack_pair: Callable[[object, object], bytes | None]
"""The ids of a prompt and of its answer (a list, tuple, array or None each) as one piece for ``unpack_pair``.

Quick enough for a serving thread, where the native part is; None where it is not, or for anything else. A
thirtieth of the lists' memory, and nothing that another processor core must fetch piece by piece.
"""
pack_pair = (lambda _input, _output: None) if _packing is None else _packing.pack_pair


def pack_ids(first: Sequence[int] | None, second: Sequence[int] | None) -> bytes | None:
    """As ``pack_pair``, of anything that holds ids, with or without the native part; None for two Nones.

    Raises:
        InvalidError: an id is not an integer within 32 bits.
    """
    if first is None and second is None:
        return None
    pieces = [None if ids is None else token_bytes(ids) for ids in (first, second)]
    counts = [-1 if piece is None else len(piece) // 4 for piece in pieces]
    return struct.pack("<qq", *counts) + b"".join(piece for piece in pieces if piece)


def unpack_pair(packed: bytes) -> tuple[bytes | None, bytes | None]:
    """The ``token_bytes`` of both, None where there were none."""
    first, second = _pair(packed)
    middle = _PAIR_HEAD + 4 * max(0, first)
    return packed[_PAIR_HEAD:middle] if first >= 0 else None, packed[middle:] if second >= 0 else None


def commit_tokens(tokens: Sequence[int], salt: bytes) -> bytes:
    """Digest that commits to ``tokens`` under a secret 32-byte ``salt``."""
    return _digest("tokens", token_bytes(tokens), salt)


def commit_record(
    key: bytes, record_id: str, packed: bytes | None, request_id: str | None
) -> tuple[str | None, str | None, str | None]:
    """A record's commitments to its input, its output and its request id, in hexadecimal; None without one.

    Each as ``commit_tokens`` or ``commit_request`` gives it, under the record's salt for that purpose.

    Args:
        key: the ``tenant_key``.
        record_id: of the record.
        packed: both token ids, as ``pack_ids`` gives them.
        request_id: the caller's.

    Raises:
        InvalidError: the request id is not Unicode.
    """
    if _native is not None:
        found = _native.commit_record(key, record_id, packed, request_id)
        if found is not None:
            return found

    def salt(purpose: str) -> bytes:
        return record_salt(key, record_id, purpose)

    given, made = (None, None) if packed is None else unpack_pair(packed)
    return (
        None if given is None else _digest("tokens", given, salt("input")).hex(),
        None if made is None else _digest("tokens", made, salt("output")).hex(),
        None if request_id is None else commit_request(request_id, salt("request")).hex(),
    )


def commit_text(text: str, salt: bytes) -> bytes:
    """Digest that commits to UTF-8 ``text``, for engines that do not show token ids.

    Raises:
        InvalidError: the text has half a surrogate pair, so that no UTF-8 spells it.
    """
    return _digest("text", _utf8(text), salt)


def commit_request(request_id: str, salt: bytes) -> bytes:
    """Salted hash of a caller's request id."""
    return _hmac(salt, _utf8(request_id))


def _hmac(key: bytes, message: bytes) -> bytes:
    if _native is not None and (found := _native.hmac(key, message)) is not None:
        return found
    return hmac.digest(key, message, "sha256")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidError("the text is not Unicode: it has half a surrogate pair", code="bad-text") from None


def _digest(of: str, content: bytes, salt: bytes) -> bytes:
    if _native is not None:
        found = _native.commit(_KINDS[of], 4 if of == "tokens" else 1, content, salt)
        if found is not None:
            return found
    return _top(of, content, merkle.root(_leaves(content, salt)))


def _top(of: str, content: bytes | int, root: bytes) -> bytes:
    size = content if isinstance(content, int) else len(content)
    count = size // 4 if of == "tokens" else size
    return hashlib.sha256(_DIGEST_TAG + _KINDS[of] + _index(count) + root).digest()


def _leaves(content: bytes, salt: bytes) -> list[bytes]:
    if len(salt) != _SALT_BYTES:
        raise InvalidError("a salt must have 32 bytes", code="bad-salt")
    sha256 = hashlib.sha256
    salts = _chunk_salts(salt, -(-len(content) // _CHUNK_BYTES))
    return [
        sha256(b"\x00" + salts[at >> 3 : (at >> 3) + _SALT_BYTES] + content[at : at + _CHUNK_BYTES]).digest()
        for at in range(0, len(content), _CHUNK_BYTES)  # 256 bytes of content to 32 of salt: at / 8
    ]


def _chunk_salts(salt: bytes, count: int) -> bytes:
    return hashlib.shake_256(_CHUNK_TAG + salt).digest(_SALT_BYTES * count)


def open_chunk(opening: Opening, index: int) -> ChunkOpening:
    """Cut the opening of chunk ``index`` out of a whole one."""
    leaves = _leaves(opening.content, opening.salt)
    if not 0 <= index < len(leaves):
        raise InvalidError(f"there is no chunk {index}; there are {len(leaves)}", code="bad-chunk")
    size = len(opening.content)
    return ChunkOpening(
        of=opening.of,
        count=size // 4 if opening.of == "tokens" else size,
        index=index,
        salt=_chunk_salts(opening.salt, index + 1)[-_SALT_BYTES:],
        content=opening.content[index * _CHUNK_BYTES : (index + 1) * _CHUNK_BYTES],
        path=tuple(merkle.inclusion_path(leaves, index)),
    )


def verify_opening(digest: bytes, opening: Opening) -> None:
    """Check that ``opening`` is what ``digest`` commits to.

    Raises:
        CorruptError: it is not.
    """
    if opening.of not in _KINDS or (opening.of == "tokens" and len(opening.content) % 4):
        raise InvalidError("an opening is of tokens (uint32 each) or of text", code="bad-opening")
    if not hmac.compare_digest(_digest(opening.of, opening.content, opening.salt), digest):
        raise CorruptError("the opening does not match the commitment", where="opening", code="bad-opening")


def verify_chunk(digest: bytes, opening: ChunkOpening) -> None:
    """Check that ``opening`` shows one chunk of what ``digest`` commits to.

    Raises:
        CorruptError: it does not. InvalidError: it cannot be an opening at all.
    """
    unit = 4 if opening.of == "tokens" else 1
    size = opening.count * unit
    begin = opening.index * _CHUNK_BYTES
    if opening.of not in _KINDS or not 0 <= begin < size or size >= 2**63:
        raise InvalidError("an opening is of tokens or of text, within its count", code="bad-opening")
    if len(opening.content) != min(_CHUNK_BYTES, size - begin) or len(opening.salt) != _SALT_BYTES:
        raise InvalidError("the chunk or its salt has the wrong length", code="bad-opening")
    leaf = merkle.leaf_hash(opening.salt + opening.content)
    chunks = -(-size // _CHUNK_BYTES)
    root = merkle.root_from_inclusion(leaf, opening.index, chunks, list(opening.path))
    if not hmac.compare_digest(_top(opening.of, size, root), digest):
        raise CorruptError("the chunk does not match the commitment", where="opening", code="bad-opening")
