"""Keeps an older copy of a log from signing: compares its head with what witnesses and kept checkpoints saw.

A log restored from an older copy is consistent with itself. Only who saw it further on can tell: a witness
that cosigned a larger tree, or a checkpoint that somebody kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.merkle import verify_consistency
from ledger.witness.ask import WitnessClient

__all__ = ["check_kept", "refuse_if_seen_larger"]

_log = logging.getLogger(__name__)
_RACES = 3
"""How often the head is read again because replicas append meanwhile."""


def refuse_if_seen_larger(
    head: Callable[[], bytes],
    prove: Callable[[int, int], Sequence[bytes]],
    log_keys: LogKeys,
    *,
    kept: Iterable[bytes] = (),
    witnesses: Sequence[WitnessClient] = (),
    strict: bool = False,
) -> list[TallystickError]:
    """Refuse a log of which somebody has seen more, or something else.

    Each witness is asked to cosign the head: one that never saw the log, or an older tree of it, does; one
    that saw more says so. To be called before the log signs anything new.

    Args:
        head: reads the log's newest checkpoint (a note that the log signed).
        prove: gives the consistency proof between two sizes, the second one the head's or smaller.
        log_keys: all keys that the log has had.
        kept: checkpoints of this log that were kept elsewhere.
        witnesses: to be asked, all at once; used by nobody else meanwhile.
        strict: whether a witness that gives no answer is an error too: for restored copies, where not to know
            is not enough.

    Returns:
        Why witnesses could not be asked, for those.

    Raises:
        CorruptError: ``log-rolled-back`` or ``forked``.
        InvalidError: a kept checkpoint is not one.
        TallystickError: with ``strict``, what kept a witness from answering.
    """
    newest = open_checkpoint(head(), log_keys)
    for note in kept:
        check_kept(open_checkpoint(note, log_keys), newest, prove)
    unasked: list[TallystickError] = []
    if not witnesses:
        return unasked
    with ThreadPoolExecutor(len(witnesses)) as threads:
        for found in threads.map(lambda client: _ask(client, head, prove), witnesses):
            if isinstance(found, CorruptError) or (found is not None and strict):
                raise found
            if found is not None:
                unasked.append(found)
    return unasked


def check_kept(kept: Checkpoint, newest: Checkpoint, prove: Callable[[int, int], Sequence[bytes]]) -> None:
    """Check that ``newest`` extends a checkpoint that was kept.

    Raises:
        CorruptError: ``log-rolled-back`` or ``forked``.
    """
    if kept.size > newest.size:
        raise CorruptError(
            f"a checkpoint of {kept.size} leaves was kept, but this log ends at {newest.size}",
            where=newest.origin,
            remedy="this is an older copy of the log: do not sign with it; restore a complete one",
            code="log-rolled-back",
        )
    try:
        path = prove(kept.size, newest.size) if 0 < kept.size < newest.size else ()
        verify_consistency(kept.size, newest.size, kept.root, newest.root, path)
    except (CorruptError, InvalidError):
        raise CorruptError(
            f"this log does not extend the checkpoint of {kept.size} leaves that was kept",
            where=newest.origin,
            remedy="keep both: together they prove that the log's key signed two histories",
            code="forked",
        ) from None


def _ask(
    client: WitnessClient, head: Callable[[], bytes], prove: Callable[[int, int], Sequence[bytes]]
) -> TallystickError | None:
    from ledger.core.checkpoint import parse_checkpoint_text
    from ledger.core.note import parse_note

    error: TallystickError | None = None
    for _ in range(_RACES):
        note = head()
        size = parse_checkpoint_text(parse_note(note).text).size
        try:
            client.cosign(note, lambda old, size=size: prove(old, size))  # type: ignore[misc]
        except TallystickError as failed:
            error = failed
            if failed.code == "log-rolled-back":
                continue  # unless a replica appended meanwhile, it says the same again
        else:
            return None
        break
    return error
