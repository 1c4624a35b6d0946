"""Pages for people: the API reference and what a problem means. No scripts, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from ledger.service.problem_types import ProblemType

__all__ = ["POLICY", "problem_page", "reference_page"]

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1.5rem}
code,pre{font:14px/1.45 ui-monospace,monospace}
pre{overflow:auto;padding:.75rem;border:1px solid color-mix(in srgb,currentColor 20%,transparent)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0}
tr{border-top:1px solid color-mix(in srgb,currentColor 15%,transparent)}
h2{margin-top:2.5rem}h3{margin-top:2rem}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'"
"""Content-Security-Policy of these pages."""


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<main>\n{body}</main>\n</html>\n"
    )


def problem_page(kind: ProblemType) -> str:
    """What a problem type means."""
    return _page(
        kind.title,
        f"<h1>{escape(kind.title)}</h1>\n<p><code>{escape(kind.path)}</code>, HTTP status {kind.status}</p>\n"
        f"<p>{escape(kind.explanation)}</p>\n<h2>What to do</h2>\n<p>{escape(kind.remedy)}</p>\n",
    )


def reference_page(document: dict[str, Any]) -> str:
    """The API reference from an OpenAPI document."""
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1>\n"]
    parts.append(_markdown(info["description"]))
    parts.append('<p>For programs: <a href="/openapi.json">openapi.json</a></p>\n')
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>\n{_markdown(tag['description'])}\n")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation.get("tags", ()):
                    parts += _operation(method, path, operation)
    return _page(f"{info['title']} API", "".join(parts))


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{escape(operation["operationId"])}">{escape(operation["summary"])}</h3>\n'
    yield f"<p><code>{method.upper()} {escape(path)}</code></p>\n"
    yield _markdown(operation.get("description", ""))
    if parameters := operation.get("parameters"):
        yield "<table>\n<tr><th>parameter</th><th>in</th><th></th></tr>\n"
        for each in parameters:
            name, text = escape(each["name"]), _inline(each.get("description", ""))
            yield f"<tr><td><code>{name}</code></td><td>{escape(each['in'])}</td><td>{text}</td></tr>\n"
        yield "</table>\n"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: <code>{escape(media_type)}</code></p>\n{_example(content.get('example'))}"
    yield "<table>\n<tr><th>status</th><th>meaning</th></tr>\n"
    for status, answer in operation["responses"].items():
        yield f"<tr><td>{escape(status)}</td><td>{_inline(answer['description'])}</td></tr>\n"
    yield "</table>\n"
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            for content in answer.get("content", {}).values():
                yield _example(content.get("example"))


def _markdown(text: str) -> str:
    """The little Markdown that our descriptions use: paragraphs, lists, bold and code."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        if not line.strip():
            blocks.append(("", []))
        elif line.startswith("* "):
            blocks.append(("li", [line[2:]]))
        elif blocks and blocks[-1][1]:
            blocks[-1][1].append(line.strip())
        else:
            blocks.append(("p", [line]))
    return "".join(f"<{tag}>{_inline(' '.join(lines))}</{tag}>\n" for tag, lines in blocks if lines)


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def _example(example: Any) -> str:
    if example is None:
        return ""
    text = example if isinstance(example, str) else json.dumps(example, indent=2)
    return f"<pre>{escape(text)}</pre>\n"
