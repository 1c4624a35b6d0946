"""Owns the file that says what generates, for hooks that are set up without code; and their recorder.

TOML or JSON. Its fields are those of ``Deployment``; ``models`` has further ones, by the name that the
server gives a model, of which each takes over what it does not state, but for what belongs to the weights::

    model = "Llama-3.1-8B-Instruct"
    engine = "vllm"
    region = "eu-central-1"
    weights = { method = "hub-revision", digest = "0e9e39f249a16976918f6564b8830bc894c89659" }

    [models."support-lora"]
    adapters = [{ name = "support" }]
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ledger.core.errors import InvalidError
from ledger.core.records import Deployment
from ledger.emit.compose import checked_deployment
from ledger.energy.site import factors_unless_named

if TYPE_CHECKING:
    from ledger.emit.recorder import Recorder

__all__ = [
    "VARIABLE",
    "Deployments",
    "decode_deployments",
    "deployments_from_environment",
    "read_deployments",
    "recorder_of",
]

VARIABLE = "TALLYSTICK_DEPLOYMENT"
"""Names the file, for hooks that are set up by the environment."""

MAX_FILE_BYTES = 1 << 20
_OF_THE_WEIGHTS = ("version", "weights", "adapters", "quantization", "speculative")


class Deployments(msgspec.Struct, frozen=True):
    """What a server generates with.

    Attributes:
        default: for a model with any other name.
        models: by the name that the server gives the model.
    """

    default: Deployment
    models: dict[str, Deployment] = {}


def read_deployments(path: str | Path) -> Deployments:
    """Read a deployment file.

    Raises:
        InvalidError: it is not there, or not a deployment.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidError(
            f"the deployment file cannot be read: {reason}", where=str(path), code="not-found"
        ) from None
    return decode_deployments(data, where=str(path))


def decode_deployments(data: bytes, *, where: str = "deployment") -> Deployments:
    """Read a deployment file's bytes.

    Raises:
        InvalidError: too large, neither TOML nor JSON, or not a deployment.
    """
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        text = data.decode()
        fields: Any = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        if not isinstance(fields, dict) or not isinstance(models := fields.pop("models", {}), dict):
            raise ValueError("it is not a table of fields")
        default = _deployment(fields)
        known = {name: _deployment(_merged(fields, name, each)) for name, each in models.items()}
        return Deployments(default, known)
    except (ValueError, msgspec.MsgspecError, RecursionError, InvalidError) as error:
        raise InvalidError(
            f"is no deployment: {error}",
            where=where,
            remedy="see the fields of Deployment in the reference of formats; model and engine are needed",
            code="bad-setting",
        ) from None


def _merged(fields: Mapping[str, Any], name: str, changes: Any) -> dict[str, Any]:
    if not isinstance(changes, dict):
        raise ValueError(f"models.{name} is not a table of fields")
    # A LoRA that states no model is an adapter on the same weights.
    kept = _OF_THE_WEIGHTS if changes.get("model", fields.get("model")) != fields.get("model") else ()
    return {key: value for key, value in fields.items() if key not in kept} | changes


def _deployment(fields: Mapping[str, Any]) -> Deployment:
    unknown = set(fields) - set(Deployment.__struct_fields__)
    if unknown:
        raise ValueError(f"there is no field {', '.join(sorted(unknown))}")
    return checked_deployment(msgspec.convert(fields, Deployment))


def recorder_of(deployments: Deployments, **options: Any) -> Recorder:
    """A recorder of what generates, its other settings from TALLYSTICK_... where ``options`` are silent.

    Raises:
        TallystickError: as ``Recorder``.
    """
    from ledger.emit.recorder import Recorder

    factors = factors_unless_named(os.environ)
    return Recorder(**{"deployment": deployments.default, "factors": factors} | options)


def deployments_from_environment() -> Deployments:
    """What TALLYSTICK_DEPLOYMENT names.

    Raises:
        InvalidError: it names nothing, or no deployment.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        raise InvalidError(
            "what generates is not known",
            where=VARIABLE,
            remedy="name a deployment file, or pass a recorder",
            code="no-deployment",
        )
    return read_deployments(path)
