"""The reverse proxy: records what any OpenAI-compatible server generates, with no change to that server.

Needs the extra ``proxy``. ``serve`` runs it; ``forward`` passes requests on, ``detect`` finds out what is
behind. The recording itself is the middleware's, ``ledger.emit.engines.asgi``.
"""
