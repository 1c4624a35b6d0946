"""What stands between LiteLLM and the real engine: it passes all on, remembers it, and fails on request.

What it remembers is the engine's own word, by which records are judged. The small model calls no tools by
itself: where a request has tools, the engine is made to write the first one's arguments, and its answer is
given the form of a call.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3


@dataclass
class Seen:
    """One request, and what came back."""

    path: str
    request: dict[str, Any]
    status: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False

    @property
    def usage(self) -> tuple[int, int]:
        """Input and output tokens, as the engine counts: it ends a stream with the usage of each choice."""
        told = [usage for each in self.events if (usage := each.get("usage"))]
        if told and "prompt_tokens" in told[0]:
            return told[0]["prompt_tokens"], sum(each["completion_tokens"] for each in told)
        # The Responses API: in the answer, or in the event that ends a stream.
        (only,) = told or [u for each in self.events if (u := each.get("response", {}).get("usage"))]
        return only["input_tokens"], only["output_tokens"]

    @property
    def cached(self) -> int:
        return sum(
            (each["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            for each in self.events
            if each.get("usage")
        )

    @property
    def choices(self) -> dict[int, str]:
        """The text of each choice."""
        texts: dict[int, str] = {}
        for event in self.events:
            for choice in event.get("choices", ()):
                said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
                parts = [said.get("reasoning_content"), said.get("content")]
                for call in said.get("tool_calls") or ():
                    parts += [call["function"].get("name"), call["function"].get("arguments")]
                texts[choice["index"]] = texts.get(choice["index"], "") + "".join(p for p in parts if p)
        return texts


class Calls:
    """Gives the events of one answer the form of a call of the tool ``name``."""

    def __init__(self, name: str) -> None:
        self.name: str | None = name

    def __call__(self, event: dict[str, Any]) -> None:
        for choice in event.get("choices", ()):
            said = choice.get("delta", choice.get("message"))
            text = said.pop("content", None)
            if text:
                function = {"name": self.name, "arguments": text}
                said["tool_calls"] = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
                self.name = None
            if choice.get("finish_reason") == "stop":
                choice["finish_reason"] = "tool_calls"


class Upstream:
    """Start with ``with``. ``refuse`` and ``cut`` may be set at any time.

    Attributes:
        seen: all requests, in order.
        refuse: so many of the next requests are answered with an error.
        cut: streams break off after so many chunks of text.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.seen: list[Seen] = []
        self.refuse = 0
        self.cut: int | None = None
        self._pool = urllib3.PoolManager(retries=False, maxsize=64)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> Upstream:
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                upstream.handle(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        body = request.rfile.read(int(request.headers["content-length"]))
        seen = Seen(request.path, json.loads(body))
        self.seen.append(seen)
        if self.refuse > 0:
            self.refuse -= 1
            seen.status = 503
            self.send(request, 503, b'{"error": {"message": "busy", "type": "server_error", "code": 503}}')
            return
        asked = dict(seen.request)
        tool = asked.pop("tools", [{}])[0].get("function")
        if tool:
            asked.pop("tool_choice", None)
            asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": tool["parameters"]}}
        shaped = Calls(tool["name"]) if tool else None
        answer = self._pool.request(
            "POST",
            self.engine + re.sub(r"/deployments/[^/]+|\?.*", "", request.path),  # Azure's
            body=json.dumps(asked),
            headers={"content-type": "application/json"},
            preload_content=False,
        )
        seen.status = answer.status
        try:
            if "event-stream" in answer.headers.get("content-type", ""):
                self.stream(request, answer, seen, shaped)
            else:
                event = json.loads(answer.read())
                if shaped is not None:
                    shaped(event)
                seen.events.append(event)
                seen.whole = True
                self.send(request, answer.status, json.dumps(event).encode())
        finally:
            answer.close()

    def send(self, request: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(data)))
        request.send_header("connection", "close")
        request.end_headers()
        request.wfile.write(data)

    def stream(self, request: BaseHTTPRequestHandler, answer: Any, seen: Seen, shaped: Calls | None) -> None:
        request.send_response(200)
        request.send_header("content-type", "text/event-stream")
        request.send_header("transfer-encoding", "chunked")
        request.send_header("connection", "close")
        request.end_headers()
        texts = 0
        held = b""
        try:
            for part in answer.stream(amt=None):
                held += part
                *lines, held = held.split(b"\n\n")
                for line in lines:
                    head, is_event, data = line.partition(b"data: {")
                    if is_event:
                        event = json.loads(b"{" + data)
                        if shaped is not None:
                            shaped(event)
                        seen.events.append(event)
                        texts += any(c.get("delta", {}).get("content") for c in event.get("choices", ()))
                        line = head + b"data: " + json.dumps(event).encode()
                    data = line + b"\n\n"
                    request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    request.wfile.flush()
                    if self.cut is not None and texts >= self.cut:
                        return  # without the last chunk: broken off
            request.wfile.write(b"0\r\n\r\n")
            seen.whole = True
        except OSError:
            pass  # the client went away
