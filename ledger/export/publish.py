"""Publishes a log's tree to an object store or a folder: tiles, entry bundles, checkpoint (C2SP tlog-tiles).

Any web server or CDN before it then answers every read of the tree, with no service behind. Only what is new
is written; full tiles never change. The checkpoint goes last, so whoever reads one finds all tiles of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.errors import CorruptError, RefusedError, UnavailableError
from ledger.core.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    TileReader,
    TileRef,
    encode_bundle,
    tile_widths,
)
from ledger.store import Store, queries
from ledger.store.witnessed import newest_witnessed, witnessed_at

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Published", "open_destination", "publish_tree"]

CHECKPOINT = "checkpoint"
_MAX_NOTE_BYTES = 64 * 1024
_AT_ONCE = 8
_GROUP = 32
"""Objects read before they are written: a bundle has up to 16 MB."""
_IMMUTABLE = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Published:
    """What was done. ``before`` is the size published until then; 0 if nothing was."""

    origin: str
    before: int
    size: int
    written: int
    removed: int


def open_destination(url: str) -> ObjectStore:
    """A folder (a path, made if missing) or an object store's URL (``s3://bucket/prefix``, ``gs://``, ``az://``).

    Credentials and endpoint are read from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

    Raises:
        UnavailableError: the extra is missing. RefusedError: the URL names no object store.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url
    except ModuleNotFoundError:
        raise UnavailableError(
            "obstore is not installed", remedy="pip install 'tallystick[objects]'", code="missing-package"
        ) from None
    if "://" not in url:
        return LocalStore(url, mkdir=True)
    scheme = url.split("://", 1)[0]
    if scheme not in ("s3", "gs", "az", "file"):
        raise RefusedError(
            f"{scheme}:// names no object store",
            where="destination",
            remedy="use a path, s3://, gs:// or az://",
            code="bad-setting",
        )
    try:
        # A plain-text endpoint is one that the operator named in the environment, such as on this host.
        options: Any = {} if scheme == "file" else {"client_options": {"allow_http": True}}
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise RefusedError(str(error), where="destination", code="bad-setting") from None


def publish_tree(
    store: Store,
    destination: ObjectStore,
    log_keys: LogKeys,
    progress: Callable[[int, int], None] | None = None,
    *,
    everything: bool = False,
    quorum: bool = False,
) -> Published:
    """Bring ``destination`` up to the log's newest checkpoint.

    The checkpoint carries the cosignatures that witnesses have given for it by now. One publisher at a time
    for each destination. Broken off, it goes on where it was.

    Args:
        store: the log's database.
        destination: from ``open_destination``.
        log_keys: the log's verifier keys.
        progress: is told objects done, and of how many.
        everything: write all tiles again, also those that should be there.
        quorum: publish the newest checkpoint that a quorum of the log's witnesses cosigned, as its service
            does; what was published is never taken back.

    Raises:
        RefusedError: a larger tree was published: this database is an older copy. CorruptError: another
            history was published. UnavailableError: the object store does not answer, or no quorum has
            cosigned anything yet (``witness-unavailable``).
    """
    from obstore.exceptions import BaseError

    try:
        with store.read() as connection:
            head = queries.log_head(connection)
            size, note = _chosen(connection, head, quorum)
            reader = TileReader(queries.tile_fetcher(connection), head.size)
            before = _published(destination, log_keys)
            _check_extends(before, head.size, reader)
            old = 0 if before is None else before.size
            if old > size:
                return Published(head.origin, old, old, 0, 0)
            refs = list(_new(0 if everything else old, size))
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for at in range(0, len(refs), _GROUP):
                    group = [(ref.path, _content(connection, ref)) for ref in refs[at : at + _GROUP]]
                    list(pool.map(lambda each: _put(destination, each[0], each[1], _IMMUTABLE), group))
                    if progress is not None:
                        progress(at + len(group), len(refs) + 1)
            _put(destination, CHECKPOINT, note.encode(), "no-cache")
        removed = _remove_partials(destination, old, size)
    except BaseError as error:
        raise UnavailableError(
            f"the object store refused or did not answer: {str(error).splitlines()[0]}",
            where="destination",
            remedy="check its URL, credentials and endpoint, and run it again",
            code="unreachable",
        ) from None
    if progress is not None:
        progress(len(refs) + 1, len(refs) + 1)
    return Published(head.origin, old, size, len(refs) + 1, removed)


def _chosen(connection: Connection, head: queries.Head, quorum: bool) -> tuple[int, str]:
    """Size and note of the checkpoint to publish."""
    cosigned = newest_witnessed(connection) if quorum else witnessed_at(connection, head.size)
    if cosigned is not None:
        return cosigned.size, cosigned.note
    if quorum:
        raise UnavailableError(
            "no quorum of witnesses has cosigned a checkpoint yet",
            where=head.origin,
            remedy="see that the service runs and reaches its witnesses, then try again",
            code="witness-unavailable",
        )
    return head.size, head.checkpoint


def _published(destination: ObjectStore, log_keys: LogKeys) -> Checkpoint | None:
    import obstore

    try:
        found = obstore.get(destination, CHECKPOINT)
    except FileNotFoundError:
        return None
    if found.meta["size"] > _MAX_NOTE_BYTES:
        raise CorruptError("is no checkpoint", where=CHECKPOINT)
    return open_checkpoint(bytes(found.bytes()), log_keys)


def _check_extends(before: Checkpoint | None, size: int, reader: TileReader) -> None:
    if before is None or not before.size:
        return
    if before.size > size:
        raise RefusedError(
            f"a tree of {before.size} leaves was published there; the database ends at {size}",
            where=CHECKPOINT,
            remedy="do not serve this database: it is an older copy",
            code="log-rolled-back",
        )
    if reader.root(before.size) != before.root:
        raise CorruptError(
            f"another tree of {before.size} leaves was published there",
            where=CHECKPOINT,
            remedy="audit the database and what was published; do not serve either before that",
            code="inconsistent-log",
        )


def _new(old: int, size: int) -> Iterator[TileRef]:
    """The tiles and bundles of a tree of ``size`` leaves that one of ``old`` leaves had not."""
    if old == size:
        return
    for level, full, partial in tile_widths(size):
        first = old >> TILE_HEIGHT * (level + 1)
        kinds = (level, None) if level == 0 else (level,)
        for kind in kinds:
            for index in range(first, full):
                yield TileRef(kind, index)
            if partial and (old >> TILE_HEIGHT * level) != (size >> TILE_HEIGHT * level):
                yield TileRef(kind, full, partial)


def _content(connection: Connection, ref: TileRef) -> bytes:
    if ref.level is None:
        return encode_bundle(queries.read_bundle(connection, ref.index, ref.width))
    return queries.read_tile(connection, ref.level, ref.index, ref.width)


def _remove_partials(destination: ObjectStore, old: int, size: int) -> int:
    """Remove the partial forms of tiles that have become full since (tlog-tiles allows it from then on)."""
    import obstore

    removed = 0
    for level, full, _ in tile_widths(size):
        if not (old >> TILE_HEIGHT * level) % TILE_WIDTH:
            continue  # the last one was full, or there was none
        index = old >> TILE_HEIGHT * (level + 1)
        if index >= full:
            continue
        for kind in (level, None) if level == 0 else (level,):
            prefix = TileRef(kind, index).path + ".p/"
            paths = [each["path"] for group in obstore.list(destination, prefix) for each in group]
            if paths:
                obstore.delete(destination, paths)
                removed += len(paths)
    return removed


def _put(destination: ObjectStore, path: str, data: bytes, cache: str) -> None:
    import obstore
    from obstore.store import LocalStore

    if isinstance(destination, LocalStore):
        obstore.put(destination, path, data)  # a folder has no attributes
        return
    attributes = {"Content-Type": "application/octet-stream", "Cache-Control": cache}
    if path == CHECKPOINT:
        attributes["Content-Type"] = "text/plain; charset=utf-8"
    obstore.put(destination, path, data, attributes=attributes)
