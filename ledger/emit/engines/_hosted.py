"""Owns the deployment of a model behind a provider's API: what can be said of it from outside. Pure.

Which engine, weights and hardware a provider uses is not known; ``engine`` names the API instead, and
``site`` the host that answered. ``version`` is the model's name in the answer where it says more than the one
asked for (``gpt-4o`` answers as ``gpt-4o-2024-08-06``).
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from msgspec import UNSET, UnsetType

from ledger.core.records import Deployment

__all__ = ["host_of", "hosted_deployment", "provider_of_host", "region_of_host"]

_MAX_NAME = 256
_MAX_SLUG = 64
_DEPLOYMENTS = 1024
"""How many are kept made. Names come from callers, so there is a bound."""

ENGINES = {
    "anthropic": "anthropic-api",
    "anyscale": "anyscale",
    "azure": "azure-openai",
    "azure_ai": "azure-ai",
    "azure_text": "azure-openai",
    "bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "custom_openai": "openai-compatible",
    "gemini": "gemini-api",
    "google": "gemini-api",
    "hosted_vllm": "vllm",
    "openai": "openai-api",
    "openai_like": "openai-compatible",
    "replicate": "replicate",
    "text-completion-openai": "openai-api",
    "together": "together",
    "together_ai": "together",
    "vertex_ai": "vertex-ai",
    "vertex_ai_beta": "vertex-ai",
}
"""Providers as gateways name them, and the ``engine`` of their deployments; others are their own name."""

_OPENAI_HOSTS = ("openai.com",)
_HOSTS = (
    ("api.openai.com", "openai"),
    ("openai.azure.com", "azure"),
    ("services.ai.azure.com", "azure"),
    ("cognitiveservices.azure.com", "azure"),
    ("api.anthropic.com", "anthropic"),
    ("api.together.xyz", "together"),
    ("api.together.ai", "together"),
    ("api.endpoints.anyscale.com", "anyscale"),
    ("generativelanguage.googleapis.com", "gemini"),
    ("aiplatform.googleapis.com", "vertex_ai"),
    ("api.replicate.com", "replicate"),
)
_REGIONS = (
    re.compile(
        r"^bedrock-(?:runtime|mantle)(?:-fips)?\.([a-z]{2}(?:-[a-z]+)+-\d)\.(?:amazonaws|api\.aws)"
    ).match,
    re.compile(r"^([a-z]+-[a-z]+\d+)-aiplatform\.googleapis\.com$").match,
    re.compile(r"^aiplatform\.([a-z]+)\.rep\.googleapis\.com$").match,
    re.compile(r"^([a-z]+\d?)\.api\.(?:openai\.com|cognitive\.microsoft\.com)$").match,
)
_dirt = re.compile(r"[^A-Za-z0-9._:~-]+").sub


@lru_cache(maxsize=_DEPLOYMENTS)
def hosted_deployment(
    provider: str,
    model: str,
    *,
    answered_as: str | None = None,
    api_base: str | None = None,
    region: str | None = None,
) -> Deployment:
    """Describe a model behind an API.

    Args:
        provider: as LiteLLM names it.
        model: as it was asked for, without the provider.
        answered_as: the model's name in the answer.
        api_base: where it was asked; its host and port are kept.
        region: of the provider, if known otherwise than by the host.
    """
    host = host_of(api_base)
    version = _name(_without(provider, answered_as))
    asked = _name(_without(provider, model)) or "unknown"
    return Deployment(
        model=asked,
        version=UNSET if version is UNSET or version == asked else version,
        engine=_engine(provider, host),
        provider=_name(provider) or UNSET,
        region=_slug(region or region_of_host(host)) or UNSET,
        site=_name(host) or UNSET,
    )


def _engine(provider: str, host: str | None) -> str:
    """The API spoken. An OpenAI client may talk to any server, so its host decides."""
    engine = ENGINES.get(provider) or _slug(provider) or "unknown"
    if engine == "openai-api" and host is not None and not _is_under(host, _OPENAI_HOSTS):
        known = provider_of_host(host)
        return "openai-compatible" if known is None else ENGINES[known]
    return engine


def host_of(api_base: str | None) -> str | None:
    """Host of a URL, with the port if it names one."""
    if not api_base:
        return None
    try:
        parts = urlsplit(api_base if "//" in api_base else f"//{api_base}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host:
        return None
    return host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def provider_of_host(host: str | None) -> str | None:
    """Who runs a public API's host; None for others."""
    if host is None:
        return None
    if host.startswith(("bedrock-runtime", "bedrock-mantle")):
        return "bedrock"
    return next((provider for suffix, provider in _HOSTS if _is_under(host, (suffix,), "-.")), None)


def region_of_host(host: str | None) -> str | None:
    """The region that a public API's host names."""
    found = None if host is None else next((match for each in _REGIONS if (match := each(host))), None)
    return None if found is None else found[1]


def _is_under(host: str, domains: tuple[str, ...], separators: str = ".") -> bool:
    return any(
        host == each or host.endswith(tuple(f"{mark}{each}" for mark in separators)) for each in domains
    )


def _without(provider: str, model: str | None) -> str | None:
    return None if model is None else model.removeprefix(f"{provider}/")


def _name(text: str | None) -> str | UnsetType:
    """As records can have it: Unicode, and without U+0000."""
    kept = "" if text is None else text.replace("\0", "").encode(errors="replace").decode()[:_MAX_NAME]
    return kept or UNSET


def _slug(text: str | None) -> str | None:
    return None if not text else _dirt("-", text).lstrip("._:~-")[:_MAX_SLUG] or None
