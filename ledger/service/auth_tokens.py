"""Workloads' tokens: JWTs (RFC 7519) of providers that the operator trusts, as OpenID Connect issues them.

A file names the providers: issuer, audience, algorithms, where the keys are, and rules that say what a
subject may do and for which tenant. Verified as RFC 8725 (best current practices) asks: algorithms come from
the file and are asymmetric, a key verifies with the one algorithm that fits it, issuer, audience and times
are required, and nothing in a token names a key or an address to fetch one from. Key sets are fetched
through ``outgoing``.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core.errors import InvalidError, RefusedError, TallystickError
from ledger.service.auth_caller import SCOPES, ApiKeyInfo

if TYPE_CHECKING:
    from ledger.outgoing import Reach

__all__ = ["Grant", "Tokens", "load_providers", "looks_like_jwt", "wrong_key"]

_MAX_TOKEN = 8 * 1024
_MAX_FILE_BYTES = 1 << 20
_MAX_SUBJECT = 512
_MAX_CACHED = 4_096
_LEEWAY_S = 60
"""By how much clocks may differ."""
_MAX_LIFETIME_S = 24 * 3600
"""A token that is good for longer is a password: workloads get theirs anew within the hour."""
_KEYS_TTL_S = 600.0
_REFETCH_S = 10.0
"""Between two fetches of a key set, however many unknown keys tokens name."""
_log = logging.getLogger(__name__)

_is_jwt = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*").fullmatch
_NAME = r"\{([a-z][a-z0-9_]{0,31})\}"

Text = Annotated[str, Meta(min_length=1, max_length=512)]
_FITTING = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
}  # fmt: skip
"""Which key an algorithm needs: its type or, where it has one, its curve. None is symmetric."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What subjects of one form may do.

    ``subject`` is compared whole; ``{name}`` in it stands for letters, digits and ``. _ ~ -``, and can be
    used in ``tenant`` and ``enrol``. ``claims`` must be in the token with just these values. ``enrol`` is the
    name of the issuer whose key such a workload may register; without it, none. The first rule that fits
    decides.
    """

    subject: Text
    scopes: Annotated[tuple[Literal["emit", "read", "admin"], ...], Meta(max_length=3)] = ()
    tenant: Text | UnsetType = UNSET
    enrol: Text | UnsetType = UNSET
    claims: Annotated[dict[str, str | int | bool], Meta(max_length=32)] = {}


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who issues tokens, for whom, and where its keys are: at a URL or in a file."""

    issuer: Text
    audience: Text
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    rules: Annotated[tuple[Rule, ...], Meta(min_length=1, max_length=256)]
    jwks_url: Text | UnsetType = UNSET
    jwks_file: Text | UnsetType = UNSET


class Providers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    providers: Annotated[tuple[Provider, ...], Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class Grant:
    """What a token lets its holder do. ``enrol`` is the issuer that it may register a key for."""

    caller: ApiKeyInfo
    enrol: str | None
    expires_s: int


def looks_like_jwt(token: str) -> bool:
    """Whether a bearer token can be a JWT at all: no API key has a dot."""
    return len(token) <= _MAX_TOKEN and _is_jwt(token) is not None


def wrong_key() -> RefusedError:
    """The error for a credential that does not hold. It does not tell why: that would help who guesses."""
    return RefusedError(
        "the API key is malformed, unknown or revoked",
        where="Authorization",
        remedy="ask an administrator of this log for a key",
        code="wrong-key",
    )


def load_providers(path: Path) -> Providers:
    """Read the file of trusted providers.

    Raises:
        InvalidError: ``bad-identity-file``: it cannot be read, or says what cannot be.
    """

    def bad(what: str) -> InvalidError:
        return InvalidError(
            what, where=str(path), remedy="see the page on tenants and keys", code="bad-identity-file"
        )

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        found = msgspec.json.decode(data, type=Providers) if len(data) <= _MAX_FILE_BYTES else None
    except OSError as error:
        raise bad(f"cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise bad(str(error)) from None
    if found is None:
        raise bad(f"has more than {_MAX_FILE_BYTES} bytes")
    if len({each.issuer for each in found.providers}) != len(found.providers):
        raise bad("names an issuer twice")
    for provider in found.providers:
        unknown = set(provider.algorithms) - _FITTING.keys()
        if unknown:
            raise bad(f"{provider.issuer}: {min(unknown)!r} is no asymmetric algorithm that is known")
        if (provider.jwks_url is UNSET) == (provider.jwks_file is UNSET):
            raise bad(f"{provider.issuer}: exactly one of jwks_url and jwks_file must be given")
        for rule in provider.rules:
            names = set(re.findall(_NAME, rule.subject))
            used = {
                n for text in (rule.tenant, rule.enrol) if text is not UNSET for n in re.findall(_NAME, text)
            }
            if used - names:
                raise bad(
                    f"{provider.issuer}: {{{min(used - names)}}} is not in the subject {rule.subject!r}"
                )
            if "admin" in rule.scopes and rule.tenant is not UNSET:
                raise bad(f"{provider.issuer}: an administrator cannot be bound to a tenant")
    return found


def _pattern(subject: str) -> re.Pattern[str]:
    parts = re.split(_NAME, subject)
    seen: set[str] = set()
    text = ""
    for at, part in enumerate(parts):
        if at % 2 == 0:
            text += re.escape(part)
        elif part in seen:
            text += f"(?P={part})"
        else:
            seen.add(part)
            text += f"(?P<{part}>[A-Za-z0-9._~-]{{1,128}})"
    return re.compile(text)


class Tokens:
    """Checks workloads' tokens. ``_lock`` guards both caches: of tokens by their SHA-256, and of key sets.

    Args:
        providers: who is trusted; None for nobody.
        ttl_s: how long a token that was checked is taken for good.
        reach: which internal hosts key sets may be fetched from.
        folder: where the names of key files begin.
    """

    def __init__(
        self, providers: Providers | None, *, ttl_s: float, reach: Reach, folder: Path | None = None
    ) -> None:
        self._providers = {each.issuer: each for each in (providers.providers if providers else ())}
        self._patterns = {
            rule.subject: _pattern(rule.subject) for each in self._providers.values() for rule in each.rules
        }
        self._ttl_s = ttl_s
        self._reach = reach
        self._folder = folder or Path()
        self._lock = threading.Lock()
        self._cache: dict[bytes, tuple[ApiKeyInfo, float]] = {}
        self._keys: dict[str, tuple[list[dict[str, Any]], float]] = {}

    def cached(self, token: str) -> ApiKeyInfo | None:
        """Who ``token`` names, if it was checked a short time ago."""
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            found = self._cache.get(digest)
            if found is not None and found[1] > time.time():
                return found[0]
            self._cache.pop(digest, None)
        return None

    def check(self, token: str) -> ApiKeyInfo:
        """Who ``token`` names. Blocks: keys may have to be fetched.

        Raises:
            RefusedError: ``wrong-key``: it does not hold, or gives no right to call; it is not told why.
        """
        grant = self.grant(token)
        if not grant.caller.scopes:
            raise wrong_key()
        if self._ttl_s:
            with self._lock:
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                until = min(time.time() + self._ttl_s, grant.expires_s + _LEEWAY_S)
                self._cache[hashlib.sha256(token.encode()).digest()] = (grant.caller, until)
        return grant.caller

    def grant(self, token: str) -> Grant:
        """What ``token`` lets its holder do. Blocks as ``check`` does, and raises what it raises."""
        import jwt

        if not looks_like_jwt(token) or not self._providers:
            raise wrong_key()
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
            provider = self._providers[claims["iss"]]
            claims = self._verify(provider, token, header)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, RecursionError) as error:
            _log.info("a token was refused: %s", type(error).__name__)
            raise wrong_key() from None
        return self._grant(provider, claims)

    def _verify(self, provider: Provider, token: str, header: dict[str, Any]) -> dict[str, Any]:
        import jwt

        algorithm = header.get("alg")
        # `jku`, `jwk`, `x5u`, `x5c`: the token would bring its own key; `crit` asks for what is not known.
        if algorithm not in provider.algorithms or header.keys() & {
            "crit",
            "jku",
            "jwk",
            "x5u",
            "x5c",
            "b64",
        }:
            raise ValueError("header")
        key = self._key(provider, header.get("kid"), str(algorithm))
        claims: dict[str, Any] = jwt.decode(
            token,
            jwt.PyJWK(key, algorithm=algorithm),
            algorithms=[str(algorithm)],
            audience=provider.audience,
            issuer=provider.issuer,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iat", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
        )
        if not (
            isinstance(claims["sub"], str)
            and 0 < len(claims["sub"]) <= _MAX_SUBJECT
            and claims["exp"] - claims["iat"] <= _MAX_LIFETIME_S
        ):
            raise ValueError("claims")
        return claims

    def _key(self, provider: Provider, kid: Any, algorithm: str) -> dict[str, Any]:
        """The one key of the provider that the token names and that fits the algorithm."""
        if kid is not None and not isinstance(kid, str):
            raise ValueError("kid")
        for again in (False, True):
            keys = self._key_set(provider, again=again)
            found = [
                each
                for each in keys
                if (kid is None or each.get("kid") == kid)
                and each.get("use", "sig") == "sig"
                and each.get("alg", algorithm) == algorithm
                and _FITTING[algorithm] == each.get("crv", each.get("kty"))
            ]
            if len(found) == 1:
                return found[0]
        raise ValueError("no such key, or more than one")

    def _key_set(self, provider: Provider, *, again: bool) -> list[dict[str, Any]]:
        now = time.monotonic()
        with self._lock:
            known = self._keys.get(provider.issuer)
            if known is not None and now - known[1] < (_REFETCH_S if again else _KEYS_TTL_S):
                return known[0]
            # Who comes while one fetches takes what there was: one slow provider must not hold all threads.
            self._keys[provider.issuer] = (known[0] if known else [], now)
        try:
            keys = self._load(provider)
        except (TallystickError, OSError, msgspec.DecodeError, TypeError) as error:
            _log.error("the keys of %s cannot be had: %s", provider.issuer, error)
            return known[0] if known else []
        with self._lock:
            self._keys[provider.issuer] = (keys, now)
        return keys

    def _load(self, provider: Provider) -> list[dict[str, Any]]:
        if provider.jwks_url is UNSET:
            with (self._folder / str(provider.jwks_file)).open("rb") as file:
                data = file.read(_MAX_FILE_BYTES)
        else:
            from ledger import http_call, outgoing

            limits = http_call.Limits(3.0, 5.0, 8.0, _MAX_FILE_BYTES, _MAX_FILE_BYTES)
            answer = outgoing.send("GET", provider.jwks_url, limits, reach=self._reach)
            if answer.status != 200:
                raise ConnectionError(f"status {answer.status}")
            data = answer.body
        keys = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
        if not isinstance(keys, list):
            raise TypeError("is not a key set")
        return [each for each in keys if isinstance(each, dict) and each.get("kty") in ("RSA", "EC", "OKP")]

    def _grant(self, provider: Provider, claims: dict[str, Any]) -> Grant:
        from ledger.store.tenancy import check_tenant

        subject = claims["sub"]
        for rule in provider.rules:
            match = self._patterns[rule.subject].fullmatch(subject)
            if match is None or not all(
                type(claims.get(name)) is type(value) and claims[name] == value
                for name, value in rule.claims.items()
            ):
                continue
            try:
                tenant = None if rule.tenant is UNSET else check_tenant(_filled(rule.tenant, match))
            except InvalidError:
                raise wrong_key() from None
            who = hashlib.sha256(f"{provider.issuer}\n{subject}".encode()).hexdigest()[:16]
            scopes = tuple(scope for scope in SCOPES if scope in rule.scopes)
            caller = ApiKeyInfo(f"jwt:{who}", scopes, "", int(claims["iat"]), None, tenant)
            enrol = None if rule.enrol is UNSET else _filled(rule.enrol, match)
            return Grant(caller, enrol, int(claims["exp"]))
        raise wrong_key()


def _filled(text: str, match: re.Match[str]) -> str:
    return re.sub(_NAME, lambda found: match[found[1]], text)
