"""The emitter: what serving code imports to record what it generates.

    from ledger.emit import Recorder

It needs no web framework, database or data-frame library, and imports in a tenth of a second.
"""

from ledger.emit.deliveries import RecordReceipt
from ledger.emit.recorder import Recorder, Status

__all__ = ["RecordReceipt", "Recorder", "Status"]
