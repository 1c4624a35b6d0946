"""Who makes a request: what an API key or a workload's token says of its holder."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCOPES", "ApiKeyInfo"]

SCOPES = ("emit", "read", "admin")
"""``admin`` implies the others."""


@dataclass(frozen=True)
class ApiKeyInfo:
    """An API key as an administrator sees it, never its secret; or who a workload's token names.

    ``id`` of a workload is ``jwt:`` and a hash of its token's issuer and subject.
    """

    id: str
    scopes: tuple[str, ...]
    label: str
    created_s: int
    revoked_s: int | None
    tenant: str | None = None
    """Whose records it sees and logs; None for those of all."""

    def allows(self, scope: str) -> bool:
        """Whether a request that needs ``scope`` may be made with this key."""
        return scope in self.scopes or "admin" in self.scopes
