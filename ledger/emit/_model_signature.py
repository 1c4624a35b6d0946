"""Owns the check of a signed model manifest: OpenSSF Model Signing specification v1.0, sections 4 and 8.

The work is that of the package ``model-signing`` (extra ``model-signing``): signatures by a key or by a
certificate chain. What it verified is remembered until a file of the model, the signature or the trusted key
changes, so that a restart does not hash the model again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ledger.core.errors import InvalidError, RefusedError, UnavailableError
from ledger.emit._digest_cache import DigestCache, file_state

__all__ = ["MODEL_SIGNATURE", "UNSIGNED", "signature_beside", "signed_digest"]

MODEL_SIGNATURE = "model.sig"
"""What ``model_signing sign`` writes beside the model unless told otherwise."""
UNSIGNED = (".cache/huggingface",)
"""What a hub's client writes into the folder of a download: times, so never the same twice."""
_MAX_SIGNATURE_BYTES = 64 << 20
_is_digest = re.compile("[0-9a-f]{64}").fullmatch


def signature_beside(path: Path) -> Path | None:
    """The signature of a model folder or file, if there is one."""
    found = [path / MODEL_SIGNATURE] if path.is_dir() else [path.with_name(path.name + ".sig")]
    return next((each for each in found if each.is_file()), None)


def signed_digest(
    path: Path, signature: Path, trust: Path, files: Iterable[tuple[str, Path]], cache: DigestCache
) -> str:
    """Verify a model against its signed manifest; return the digest that the manifest has as its subject.

    Args:
        path: the model's folder or file.
        signature: a Sigstore bundle.
        trust: PEM file of the public key or of the certificates that the signer's must lead to.
        files: the model's files, by name.
        cache: remembers what was verified.

    Raises:
        RefusedError: the signature or a file does not verify.
        UnavailableError: the package ``model-signing`` is not installed.
        InvalidError: the signature or the trusted file is of no known form.
    """
    bundle, trusted = _read(signature), _read(trust)
    state = hashlib.sha256(hashlib.sha256(bundle).digest() + hashlib.sha256(trusted).digest())
    for name, file in files:
        state.update(f"{name}\0{file_state(file.resolve())}\0".encode())
    name = f"signed {path.resolve()}"
    if (known := cache.get(name, state.hexdigest())) is not None:
        return known
    digest, serialization = _subject(bundle, signature)
    _verify(path, signature, trust, trusted, serialization)
    if _read(signature) != bundle:
        raise RefusedError(
            "the signature changed while it was verified", where=str(signature), code="model-unverified"
        )
    cache.put(name, state.hexdigest(), digest)
    return digest


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size <= _MAX_SIGNATURE_BYTES:
            return path.read_bytes()
        problem = f"has more than {_MAX_SIGNATURE_BYTES} bytes"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise InvalidError(problem, where=str(path), code="model-unverified")


def _subject(bundle: bytes, where: Path) -> tuple[str, dict[str, Any]]:
    """The subject's digest and the serialization that a bundle states. Not verified yet."""
    try:
        statement = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"], validate=True))
        digest = statement["subject"][0]["digest"]["sha256"]
        serialization = statement["predicate"]["serialization"]
        if _is_digest(digest) and isinstance(serialization, dict):
            return digest, serialization
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        pass
    raise InvalidError(
        "is no bundle of the OpenSSF Model Signing specification 1.0",
        where=str(where),
        code="model-unverified",
    )


def _verify(path: Path, signature: Path, trust: Path, trusted: bytes, serialization: dict[str, Any]) -> None:
    try:
        from model_signing import hashing, verifying
    except ImportError as error:
        raise UnavailableError(
            f"the package model-signing is not installed ({error.name})",
            where=str(signature),
            remedy="install tallystick[model-signing]",
            code="model-unverified",
        ) from None
    try:
        # Not guessed by the package: it would refuse the symbolic links that a hub's cache is made of.
        how = hashing.Config()
        if serialization.get("method") == "shards":
            how.use_shard_serialization(
                hashing_algorithm=serialization["hash_type"],
                # A bundle's JSON has it as 1e9, which the package itself would stumble over.
                shard_size=int(serialization["shard_size"]),
            )
        else:
            how.use_file_serialization(hashing_algorithm=serialization["hash_type"])
        how.set_allow_symlinks(True)
        if path.is_dir():
            how.set_ignored_paths(paths=[signature.name, *UNSIGNED])
        check = verifying.Config().set_hashing_config(how)
        if b"-----BEGIN CERTIFICATE" in trusted:
            check.use_certificate_verifier(certificate_chain=[trust])
        else:
            check.use_elliptic_key_verifier(public_key=trust)
        check.verify(path, signature)
    except Exception as error:  # the package and those under it raise many kinds
        reason = str(error) or type(error).__name__
        raise RefusedError(
            f"the model does not verify: {reason[:500]}",
            where=str(signature),
            remedy="download the model and its signature again, or name the key that signed it",
            code="model-unverified",
        ) from None
