"""Owns what reports need and a log cannot know: a small file of values, each with who states it.

    {"format": "tallystick-inputs", "version": 1, "stated_by": "Example Cloud GmbH, facilities",
     "values": {"facility_energy_kwh": {"value": "1250000", "source": "meter M1, 2026-01"}}}

Who states them signs the file (``sign_inputs``, beside it); its digest is in the report, whose signature so
covers it too. Reports show each value as stated, never as measured. What a report asks for and the file does
not have is a stated gap, never a guess.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ledger.core.errors import InvalidError
from ledger.core.keys import PrivateKey, PublicKey
from ledger.export.reports.document import Text
from ledger.export.reports.signing import SignedKind, check_beside, sign_beside

__all__ = ["Asked", "Inputs", "InputsFile", "Stated", "read_inputs", "sign_inputs", "signature_of"]

MAX_INPUTS_BYTES = 1 << 20
_KIND = SignedKind(
    "inputs file",
    "application/vnd.tallystick.report-inputs+json",
    "tallystick:report-inputs",
    "bad-inputs",
    "stating person",
)
_is_decimal = re.compile(r"-?[0-9]{1,64}(\.[0-9]{1,64})?").fullmatch


@dataclass(frozen=True)
class Asked:
    """A value that a report asks for.

    Attributes:
        what: what it is, in words; told as a gap where it is not given.
        unit: of an amount; None for words.
        reference: what asks for it.
        needed: whether its absence is a gap. Without one that is not needed, a stated rule holds.
    """

    what: str
    unit: str | None
    reference: str = ""
    needed: bool = True


class Stated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One value: decimal text, or words, with its source."""

    value: Text
    source: Text


class InputsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a log cannot know: values by name, and who states them."""

    format: Literal["tallystick-inputs"]
    version: Literal[1]
    stated_by: Text
    values: Annotated[dict[str, Stated], Meta(max_length=1024)]


@dataclass
class Inputs:
    """The values, and which of them a report asked for. Used by one report.

    Attributes:
        digest: SHA-256 of the file; None without one.
        signed_by: id of the key by which the file was signed; None if that was not checked.
        used: name -> value of everything that was asked for and found.
        missing: name -> what it is, of everything that was asked for in vain.
    """

    values: dict[str, Stated] = field(default_factory=dict)
    stated_by: str = ""
    digest: str | None = None
    signed_by: str | None = None
    used: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def number(self, name: str, what: str) -> Fraction | None:
        """The amount ``name``, or None; ``what`` says in words what is missing.

        Raises:
            InvalidError: it is there, but no decimal number.
        """
        text = self.text(name, what)
        if text is None:
            return None
        if _is_decimal(text) is None:
            where = f"inputs: {name}"
            raise InvalidError(f"is {text!r}, not a decimal number", where=where, code="bad-inputs")
        return Fraction(text)

    def text(self, name: str, what: str | None) -> str | None:
        """The words ``name``, or None; then ``what`` is missing, unless that is None too."""
        stated = self.values.get(name)
        if stated is None:
            if what is not None:
                self.missing[name] = what
            return None
        self.used[name] = f"{stated.value} ({stated.source})"
        return stated.value


def read_inputs(path: Path | None, key: PublicKey | None = None) -> Inputs:
    """Read the file; without one, everything is missing.

    Args:
        path: the file.
        key: of whoever states the values: then the signature beside the file must be by it.

    Raises:
        InvalidError: it is not an inputs file, or not signed by ``key``. CorruptError: it was changed since.
    """
    if path is None:
        if key is not None:
            raise InvalidError(
                "there is a key for an inputs file, and no file",
                where="inputs",
                remedy="name the file too, or leave the key out",
                code="bad-parameter",
            )
        return Inputs()
    data = _bytes_of(path, "")
    file = _decoded(data, path)
    if key is not None:
        remedy = "whoever states the values signs the file: tallystick report sign-inputs"
        check_beside(data, _bytes_of(signature_of(path), remedy), key, _KIND)
    signed_by = None if key is None else key.kid.hex()
    return Inputs(file.values, file.stated_by, hashlib.sha256(data).hexdigest(), signed_by)


def sign_inputs(path: Path, key: PrivateKey) -> bytes:
    """The signature for beside the file (``signature_of``), in the name of who states it.

    Raises:
        InvalidError: it is not an inputs file.
    """
    data = _bytes_of(path, "")
    return sign_beside(data, key, _KIND, issuer=_decoded(data, path).stated_by)


def signature_of(path: Path) -> Path:
    """Where the signature of an inputs file is."""
    return path.with_name(f"{path.name}.cose")


def _bytes_of(path: Path, remedy: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUTS_BYTES + 1)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise InvalidError(what, where=str(path), remedy=remedy, code="io") from None
    if len(data) > MAX_INPUTS_BYTES:
        raise InvalidError(f"has more than {MAX_INPUTS_BYTES} bytes", where=str(path), code="bad-inputs")
    return data


def _decoded(data: bytes, path: Path) -> InputsFile:
    try:
        return msgspec.json.decode(data, type=InputsFile)
    except msgspec.MsgspecError as error:
        raise InvalidError(
            f"is not an inputs file: {error}",
            where=str(path),
            remedy="see the reference of reports for its form",
            code="bad-inputs",
        ) from None
