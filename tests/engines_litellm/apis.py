"""What the APIs of Anthropic and Gemini send, in the form that their documentation has, from a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MESSAGE: dict[str, Any] = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [
        {"type": "thinking", "thinking": "Hm. ", "signature": "x"},
        {"type": "text", "text": "Blue."},
        {"type": "tool_use", "id": "toolu_1", "name": "paint", "input": {"colour": "blue"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1000,
        "output_tokens": 25,
        "output_tokens_details": {"thinking_tokens": 7},
    },
}
EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": MESSAGE
        | {"content": [], "stop_reason": None, "usage": MESSAGE["usage"] | {"output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Blu"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "e."}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 25},
    },
    {"type": "message_stop"},
]
CONTENT: dict[str, Any] = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": "Hm. ", "thought": True}, {"text": "Blue."}]},
            "finishReason": "MAX_TOKENS",
            "index": 0,
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 50,
        "cachedContentTokenCount": 40,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 9,
        "toolUsePromptTokenCount": 3,
        "totalTokenCount": 67,
    },
    "modelVersion": "gemini-2.5-flash-001",
    "responseId": "resp-1",
}


@pytest.fixture
def api() -> Iterator[str]:
    """Answers as the APIs do."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "generateContent" in self.path:
                self.whole(CONTENT)
            elif "streamGenerateContent" in self.path:
                first = {k: v for k, v in CONTENT.items() if k != "usageMetadata"}
                first["candidates"] = [{"content": {"parts": [{"text": "Blue"}]}, "index": 0}]
                self.events([(None, first), (None, CONTENT)])
            elif body.get("stream"):
                self.events([(event["type"], event) for event in EVENTS])
            else:
                self.whole(MESSAGE)

        def whole(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json; charset=UTF-8")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def events(self, events: list[tuple[str | None, Any]]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for name, event in events:
                head = f"event: {name}\r\n" if name else ""
                self.wfile.write(f"{head}data: {json.dumps(event)}\r\n\r\n".encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
