"""Compares the operator's settings with the acts that set them: what may be erased, whose issuer is whose.

Legal holds, retention policies and issuers' tenants are kept in plain tables, which nothing else leads to;
but each was set by an act that the log's key signed. When a hold was placed and lifted is not in the act, and
is not compared.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ledger.audit.sources import Row

__all__ = ["SettingsAudit"]


_TABLES = {"hold": "legal_hold", "retention": "retention_policy", "issuer-key": "issuer_tenant"}


class SettingsAudit:
    """What must be in force by the acts so far. Owned by the one thread that audits.

    Attributes:
        expected: table -> primary key -> the row, in the order of ``tables.SETTINGS``.
        undecided: tables that an act is about whose particulars are lost.
        untold: issuers whose key statements do not say which tenant they are of.
        uninvited: ids of invitations by which keys were enrolled, and that no act made.
    """

    def __init__(self) -> None:
        self.expected: dict[str, dict[Row, Row]] = {
            "legal_hold": {},
            "retention_policy": {},
            "issuer_tenant": {},
        }
        self.undecided: set[str] = set()
        self.untold: set[str] = set()
        self.uninvited: set[str] = set()
        self._seen: set[str] = set()
        self._invited: set[str] = set()

    def said(self, action: str, detail: bytes) -> None:
        """Follow one act, whose particulars are those that the log's key signed."""
        holds, policies, tenants = self.expected.values()
        try:
            told: dict[str, Any] = msgspec.json.decode(detail, type=dict[str, Any])
            if action == "hold.place":
                place = (told["hold"], told.get("tenant"), told.get("from_us"), told.get("to_us"))
                holds[told["hold"],] = (*place, told["reason"], 0)
            elif action == "hold.lift":
                holds[told["hold"],] = (*holds[told["hold"],][:-1], 1)
            elif action == "retention.set":
                key = told["tenant"], told["kind"]
                policies[key] = (*key, told["keep_days"])
            elif action == "retention.remove":
                policies.pop((told["tenant"], told["kind"]), None)
            elif action == "issuer.invite":
                self._invited.add(told["invite"])
            elif action in ("issuer-key.add", "issuer-key.rotate"):
                # An issuer's first key decides: later ones find it bound or free, and change nothing.
                issuer, invite = told["issuer"], told.get("invite")
                if issuer not in self._seen and "tenant" in told:
                    tenants[issuer,] = issuer, told["tenant"]
                self._seen.add(issuer)
                if invite is not None and not invite.startswith("jwt-") and invite not in self._invited:
                    self.uninvited.add(invite)
        except (msgspec.DecodeError, KeyError, TypeError, UnicodeError):
            return  # signed as it is: an act of another version

    def lost(self, action: str) -> None:
        """Note that the particulars of an act are gone or changed."""
        table = None if action == "issuer-key.revoke" else _TABLES.get(action.partition(".")[0])
        if table is not None:
            self.undecided.add(table)
