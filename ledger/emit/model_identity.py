"""Owns the identity of a model's weights: what ``Deployment.weights`` says, found once and remembered.

- A folder (safetensors, single or sharded, an ONNX model, an adapter): the manifest digest of the OpenSSF
  Model Signing specification v1.0, section 6.5.1: SHA-256 over the SHA-256 digests of all files, in the order
  of their names. Left out are Git's own files, the signature, and what a hub's client keeps of a download. It
  is what ``model_signing sign`` states as the subject of its signature. (Names are ordered as text, as the
  specification asks; model-signing 1.1.1 orders by path components, which differs where a folder ``a`` stands
  beside a file ``a-b``.)
- A single file (GGUF): the SHA-256 of the file. The parts of a split GGUF (``-00001-of-00003.gguf``) are
  taken together, as a folder that has nothing else.
- Weights that are not on this machine: the hub's commit.

A signed manifest (``model.sig`` in the folder, ``NAME.sig`` beside a file) is verified when
TALLYSTICK_MODEL_TRUST names the key or certificates to trust. What is recorded then is the digest that was
signed: whoever has the signature sees that it is the same. A model that does not verify gets no weights in
its deployment, and the log says so at once, since the digest of files that the signer does not vouch for
would look like that of files that he does.

Hashing takes a second for a gigabyte or two. ``identified`` does it on a thread of its own, so that serving
does not wait.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import UNSET

from ledger.core.errors import InvalidError, TallystickError
from ledger.core.records import Deployment, Weights
from ledger.emit._digest_cache import DigestCache
from ledger.emit._model_signature import MODEL_SIGNATURE, UNSIGNED, signature_beside, signed_digest

__all__ = ["file_digest", "find_model", "hub_revision", "identified", "manifest", "weights_of"]

_logger = logging.getLogger("tallystick.emit")

_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_PROGRESS_EVERY_S = 10.0
_WAIT_S = 5.0
"""How long ``identified`` waits: enough for some ten gigabytes, or for any model that is remembered."""
_is_commit = re.compile("[0-9a-f]{40,64}").fullmatch
_is_split = re.compile(r"(.+)-00001-of-(\d{5})\.gguf").fullmatch


def weights_of(path: str | Path, *, cache: Path | None = None, trust: str | Path | None = None) -> Weights:
    """What identifies the weights in a folder or file. Reads all of it, unless that was done before.

    Args:
        path: a folder with a model or adapter, or a single file.
        cache: the file that remembers digests; ``tallystick/digests.json`` in the user's cache directory if
            absent.
        trust: PEM file of the public key or certificates that a signature must come from. Environment:
            TALLYSTICK_MODEL_TRUST. Without it, signatures are not looked at.

    Raises:
        InvalidError: there is no model there.
        RefusedError: it is signed, and does not verify.
        UnavailableError: it is signed, and cannot be verified here.
    """
    path = Path(path)
    digests = DigestCache(cache)
    files = list(_files(path))
    trust = trust or os.environ.get("TALLYSTICK_MODEL_TRUST") or None
    signature = signature_beside(path)
    signed = None
    if trust is not None and signature is not None:
        signed = signed_digest(path, signature, Path(trust), files, digests)
        _logger.info("the signature of %s verifies", path)
    if files == [(path.name, path)]:
        return Weights(method="file", digest=_digest(path, digests, _Progress(path, files)))
    if signed is not None:
        return Weights(method="openssf-model-signing", digest=signed)
    root = hashlib.sha256()
    for _, digest in _manifest(path, files, digests):
        root.update(bytes.fromhex(digest))
    return Weights(method="openssf-model-signing", digest=root.hexdigest())


def manifest(path: str | Path, *, cache: Path | None = None) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file that the digest of a model's folder covers, in the order of their names.

    Raises:
        InvalidError: there is no model there.
    """
    path = Path(path)
    return list(_manifest(path, list(_files(path)), DigestCache(cache)))


def file_digest(path: str | Path, *, cache: Path | None = None) -> str:
    """SHA-256 of one file, hex; remembered.

    Raises:
        InvalidError: there is no such file.
    """
    path = Path(path)
    return _digest(path, DigestCache(cache), None)


def identified(
    deployment: Deployment,
    path: str | Path | None,
    *,
    wait_s: float | None = _WAIT_S,
    cache: Path | None = None,
    trust: str | Path | None = None,
) -> Callable[[], Deployment]:
    """Return a function that gives ``deployment`` with its weights, from when they are known.

    The weights are found on a thread, which is waited for ``wait_s`` seconds at most. Only a big model that
    was never seen before takes longer. Until it is done, the deployment names the hub's commit, where the
    folder says which it is, or no weights: records made meanwhile refer to that deployment, those made later
    to the one with the digest, and both stay in the log. Never raises: what went wrong is in the log.

    Args:
        deployment: without weights, or with those to name if no better are found.
        path: the model's folder or file; None if it is not on this machine.
        wait_s: how long to wait; None for as long as it takes.
        cache: see ``weights_of``.
        trust: see ``weights_of``.
    """
    current = [deployment]  # one item, replaced by the thread, read by anybody

    def get() -> Deployment:
        return current[0]

    if path is None:
        return get
    where = Path(path)
    revision = hub_revision(where)
    if deployment.weights is UNSET and revision is not None:
        current[0] = _with(deployment, revision)

    def find() -> None:
        try:
            current[0] = _with(deployment, weights_of(where, cache=cache, trust=trust))
        except TallystickError as error:
            if error.code == "model-unverified":
                current[0] = _with(deployment, UNSET)
            _logger.error("the deployment of %s states no digest of its weights: %s", deployment.model, error)
        except Exception:
            _logger.exception("the weights of %s could not be identified", where)

    thread = threading.Thread(target=find, name="tallystick-weights", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: serving goes on without a digest
        _logger.error("the weights of %s are not identified: no thread could be started", where)
        return get
    thread.join(wait_s)
    if thread.is_alive():
        _logger.info(
            "still hashing the weights of %s; until that is done, records name no digest of them", where
        )
    return get


def hub_revision(path: Path) -> Weights | None:
    """The commit that a folder of a hub's cache (``models--ORG--NAME/snapshots/COMMIT``) is named after."""
    path = Path(os.path.abspath(path))  # not resolved: the files are links to another folder
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and _is_commit(folder.name):
            return Weights(method="hub-revision", digest=folder.name)
    return None


def find_model(name_or_path: str, revision: str | None = None) -> Path | None:
    """Where a model is on this machine: the path itself, or the snapshot in the hub's cache. Never downloads.

    Args:
        name_or_path: a path, or a name on the Hugging Face hub (``org/name``).
        revision: a branch, tag or commit; ``main`` if absent.
    """
    if os.path.exists(name_or_path):
        return Path(name_or_path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path):
        return None
    folder = _hub_cache() / ("models--" + name_or_path.replace("/", "--"))
    commit = revision or "main"
    try:
        if not _is_commit(commit):
            commit = (folder / "refs" / commit).read_text().strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if _is_commit(commit) and snapshot.is_dir() else None


def _hub_cache() -> Path:
    """As ``huggingface_hub.constants`` finds it."""
    environment = os.environ
    given = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    home = environment.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


# --- files -----------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """Tells the log how far hashing has come. Owned by the thread that hashes."""

    path: Path
    files: list[tuple[str, Path]]
    _done: int = 0
    _said_at: float = field(default_factory=time.monotonic)

    def __call__(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._said_at >= _PROGRESS_EVERY_S:
            self._said_at = now
            total = sum(file.stat().st_size for _, file in self.files)
            _logger.info("hashing %s: %d of %d MB", self.path, self._done >> 20, total >> 20)


def _with(deployment: Deployment, weights: Weights | msgspec.UnsetType) -> Deployment:
    return msgspec.structs.replace(deployment, weights=weights)


def _bad(what: str, where: Path) -> InvalidError:
    return InvalidError(
        what, where=str(where), remedy="name the folder or file that the model is in", code="bad-model"
    )


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files that a model consists of, in the order of their names. Links to files count as files."""
    if path.is_file():
        yield from ((part.name, part) for part in _parts(path))
        return
    if not path.is_dir():
        raise _bad("there is no model", path)
    found: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(path, onerror=_raise):
        here = Path(folder).relative_to(path)
        folders[:] = [each for each in folders if not _left_out((here / each).as_posix())]
        for each in names:
            name = (here / each).as_posix()
            if not _left_out(name):
                found.append((name, Path(folder) / each))
    if not found:
        raise _bad("the folder has no files", path)
    for name, file in found:
        if not file.is_file():
            raise _bad("is no file, or a link to one that is not there", file)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise _bad("has a name that is no text", file) from None
    yield from sorted(found)


def _parts(path: Path) -> list[Path]:
    """The file, or all parts of the split GGUF that it is the first of."""
    split = _is_split(path.name)
    if split is None:
        return [path]
    count = int(split[2])
    parts = [path.with_name(f"{split[1]}-{at:05d}-of-{count:05d}.gguf") for at in range(1, count + 1)]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise _bad("a part of the model is missing", missing[0])
    return parts


def _raise(error: OSError) -> None:
    raise _bad(f"cannot be read: {error.strerror}", Path(str(error.filename)))


def _left_out(name: str) -> bool:
    return name in _GIT or name == MODEL_SIGNATURE or name in UNSIGNED


def _manifest(path: Path, files: list[tuple[str, Path]], cache: DigestCache) -> Iterator[tuple[str, str]]:
    progress = _Progress(path, files)
    for name, file in files:
        yield name, _digest(file, cache, progress)


def _digest(path: Path, cache: DigestCache, progress: _Progress | None) -> str:
    try:
        return cache.file_digest(path, progress)
    except OSError as error:
        raise _bad(f"cannot be read: {error.strerror}", path) from None
