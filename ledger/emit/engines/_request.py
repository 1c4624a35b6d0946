"""Owns what a caller says about a generation, for engines that run inside the caller's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Request"]


@dataclass
class Request:
    """Says who asked, and learns the records. Each field is optional.

    Attributes:
        request_id: the caller's own id; a salted hash of it is recorded.
        tenant: who the generation is for; a name that is no pseudonym is hidden by the recorder.
        parent: the record that caused this request (agent chains).
        should_stop: asked after each token; a true answer ends the generation, recorded as ``abort``.
        record_ids: filled by the hook once the generation has ended: the record of each sequence, in order.
    """

    request_id: str | None = None
    tenant: str | None = None
    parent: str | None = None
    should_stop: Callable[[], bool] | None = None
    record_ids: list[str] = field(default_factory=list)
