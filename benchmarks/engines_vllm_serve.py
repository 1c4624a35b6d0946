"""Throughput of ``vllm serve`` with the plugin over without it: two servers of one model, in turns.

Run by ``make bench-engines``, or by ``python -m benchmarks.engines_vllm_serve [PAIRS [MODEL]]``. Five
hundred conversations arrive at once over HTTP, half of them streamed, with the lengths of production ones
(see ``tests/engines/conversations.py``); all are answered to their end. Both servers run all the time, and
the one that is not asked waits. Each pair has conversations of its own, so that no prompt is cached. The
plugin seals, signs and writes to its spool; the ledger would be on another machine. The default model is a
Llama of two layers, as in ``engines_vllm``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

PAIRS = 15
REQUESTS = 500
_ANSWERED_OF_TEN = 7


def run(pairs: int = PAIRS, model: str | None = None) -> dict[str, Any]:
    """Measure; see ``compared`` for the figures. CPU is that of a server's processes."""
    from benchmarks._interleaved import compared
    from ledger.emit.survey import survey
    from tests.engines.conversations import conversations, send_at_once
    from tests.engines.smollm2 import tiny_llama
    from tests.engines.vllm_server import VllmServer, serving_vllm

    rounds: dict[VllmServer, int] = {}

    def work(server: VllmServer) -> int:
        """The conversations of the server's next round; returns the tokens that it says it made."""
        rounds[server] = number = rounds.get(server, 0) + 1
        some = conversations(REQUESTS * 10 // _ANSWERED_OF_TEN + 10, "test-model", seed=number)
        sent = [one for one in some if one.leaves_after is None][:REQUESTS]
        send_at_once(server.url, sent)
        assert {one.status for one in sent} == {200}
        return sum(one.usage["completion_tokens"] for one in sent if one.usage is not None)

    served = tiny_llama() if model is None else Path(model)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / each for each in ("plain", "recorded", "spool")]
        for folder in folders[:2]:
            folder.mkdir()
        with (
            serving_vllm(folders[0], served, None, VLLM_PLUGINS="") as plain,
            serving_vllm(folders[1], served, None, TALLYSTICK_SPOOL=str(folders[2])) as recorded,
        ):
            figures = compared(
                lambda: work(plain), lambda: work(recorded), pairs, cpu_s=(plain.cpu_s, recorded.cpu_s)
            )
        records = survey(folders[2]).records
    expected = (pairs + 1) * REQUESTS
    assert records == expected, f"{records} records of {expected} requests"
    return {"requests_each": REQUESTS} | figures


if __name__ == "__main__":
    given = sys.argv[1:]
    for label, value in run(int(given[0]) if given else PAIRS, *given[1:2]).items():
        print(f"{label:24}{value:12.4g}")
