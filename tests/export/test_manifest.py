"""The manifest's signature, and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ledger.core import cose
from ledger.core.canonical import encode_canonical
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.export_layout import (
    CONTENT_TYPE,
    STATEMENTS_FILE,
    Manifest,
    ManifestFile,
    Scope,
    open_manifest,
    part_path,
    sign_manifest,
)
from ledger.core.keys import generate_key
from tests.build import ORIGIN, START_US, Issuer

KEY = generate_key()
FILES = tuple(
    ManifestFile(path=path, bytes=9, sha256="0a" * 32, rows=1)
    for path in (STATEMENTS_FILE, part_path("2025-10-09", 0), part_path("2025-10-09", 1))
)


def make_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "origin": ORIGIN,
        "checkpoint": "note",
        "created_us": START_US,
        "software": "tests",
        "scope": Scope(statements="all"),
        "records": 2,
        "statements": 1,
        "files": FILES,
    }
    return Manifest(**(fields | changes))


def resign(data: bytes, **changes: Any) -> bytes:
    """A signature of ``data`` by the right key, with another header."""
    claims = changes.pop("claims", {cose.CWT_ISS: ORIGIN, cose.CWT_SUB: "tallystick:export"})
    header = {cose.CONTENT_TYPE: changes.pop("content_type", CONTENT_TYPE), cose.CWT_CLAIMS: claims}
    return cose.encode_sign1(cose.sign1(header, data, KEY, **({"detached": True} | changes)))


def test_what_was_signed_opens() -> None:
    manifest = make_manifest(scope=Scope(statements="needed", from_us=1, to_us=2))
    data, signature = sign_manifest(manifest, KEY)
    assert open_manifest(data, signature, KEY.public) == manifest
    assert resign(data) == signature


@pytest.mark.parametrize(
    "files",
    [
        FILES[1:],
        (FILES[1], FILES[0]),
        (FILES[0], FILES[0]),
        (FILES[0], msgspec.structs.replace(FILES[1], path="../../etc/passwd")),
        (FILES[0], msgspec.structs.replace(FILES[1], path="manifest.json")),
        (FILES[0], msgspec.structs.replace(FILES[1], path=FILES[1].path + "\n")),
    ],
)
def test_files_are_listed_sorted_once_and_by_known_names(files: tuple[ManifestFile, ...]) -> None:
    manifest = make_manifest(files=files)
    with pytest.raises(InvalidError):
        sign_manifest(manifest, KEY)
    data = encode_canonical(manifest)
    with pytest.raises(InvalidError):
        open_manifest(data, resign(data), KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        {"content_type": "application/vnd.tallystick.statement+json"},
        {"claims": {cose.CWT_ISS: "other.example.com", cose.CWT_SUB: "tallystick:export"}},
        {"claims": {cose.CWT_ISS: ORIGIN, cose.CWT_SUB: "tallystick:key:00"}},
        {"claims": {cose.CWT_ISS: ORIGIN}},
        {"claims": [ORIGIN]},
        {"detached": False},
    ],
)
def test_other_signatures_of_the_log_are_not_the_manifests(change: dict[str, Any]) -> None:
    data, _ = sign_manifest(make_manifest(), KEY)
    with pytest.raises(InvalidError):
        open_manifest(data, resign(data, **change), KEY.public)


def test_a_statement_is_not_a_manifest_signature() -> None:
    issuer = Issuer(key=KEY)
    with pytest.raises(InvalidError):
        open_manifest(b"{}", issuer.heartbeat().entry, KEY.public)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.replace(b'"records":2', b'"records":3'),
        lambda data: data + b" ",
        lambda data: b"",
    ],
)
def test_a_changed_manifest_is_noticed(spoil: Any) -> None:
    data, signature = sign_manifest(make_manifest(), KEY)
    with pytest.raises(CorruptError):
        open_manifest(spoil(data), signature, KEY.public)


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"\xff",
        encode_canonical(make_manifest()).replace(b'"version":1', b'"version":2'),
        encode_canonical(make_manifest()).replace(b'"version":1', b'"version":1.0'),
        encode_canonical(make_manifest()).replace(b'"records":2', b'"records":2,"x":1'),
        encode_canonical(make_manifest()) + b"\n",
    ],
)
def test_signed_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        open_manifest(data, resign(data), KEY.public)
