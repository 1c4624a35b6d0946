"""The files in ``schemas/`` are what the code writes, and they say the truth about real documents."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cbor2
import jsonschema
import pytest

from ledger.audit import dispute
from ledger.core import settlement
from ledger.core.export_layout import RECORD_COLUMNS, STATEMENT_COLUMNS
from ledger.core.keys import generate_key
from ledger.schemas import contract_files
from ledger.schemas.__main__ import main
from ledger.schemas.cddl import CDDL, ROOT_RULES
from ledger.schemas.descriptions import FIELDS
from ledger.schemas.json_schema import DOCUMENTS
from ledger.schemas.vectors import ML_DSA_44_FILE
from ledger.store import enrolment

SCHEMAS = Path(__file__).parent.parent / "schemas"
BY_HAND = {"README.md", "vectors/README.md"}


def vectors(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "vectors" / name).read_bytes())
    return found


def validator(path: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / path).read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return contract_files(SCHEMAS)


def test_the_files_are_what_the_code_writes(made: dict[str, bytes]) -> None:
    there = {p.relative_to(SCHEMAS).as_posix() for p in SCHEMAS.rglob("*") if p.is_file()}
    assert there - BY_HAND == made.keys(), "run `make schemas`, and remove what it no longer writes"
    changed = [path for path, data in made.items() if (SCHEMAS / path).read_bytes() != data]
    assert not changed, f"run `make schemas` and review what changed: {changed}"


def test_the_command_writes_what_is_missing(
    tmp_path: Path, made: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(SCHEMAS, tmp_path / "schemas"))
    (copy / "tallystick.cddl").write_text("old")
    (copy / "vectors" / "batch.json").unlink()
    assert main([str(copy)]) == 0
    assert sorted(capsys.readouterr().out.split()) == [
        str(copy / "tallystick.cddl"),
        str(copy / "vectors" / "batch.json"),
    ]
    assert {path: (copy / path).read_bytes() for path in made} == made
    assert main(["a", "b"]) == 2


def test_the_read_me_names_every_file(made: dict[str, bytes]) -> None:
    text = (SCHEMAS / "README.md").read_text()
    of_vectors = (SCHEMAS / "vectors" / "README.md").read_text()
    for path in made:
        if path.startswith("vectors/"):
            assert path.removeprefix("vectors/") in of_vectors
        elif not path.startswith("statements/"):
            assert path in text


def test_every_field_is_described_and_no_other() -> None:
    described = set()
    for path in DOCUMENTS:
        schema = json.loads((SCHEMAS / path).read_bytes())
        for name, each in {schema["title"]: schema, **schema.get("$defs", {})}.items():
            described |= {(name, field) for field in each["properties"]}
            assert all(part["description"] for part in each["properties"].values())
    assert described == {(name, field) for name, fields in FIELDS.items() for field in fields}


def test_patterns_need_no_look_around(made: dict[str, bytes]) -> None:
    """RE2, as Go and others use it, has none."""
    assert not [path for path in DOCUMENTS if b"(?" in made[path]]


# --- JSON Schema -----------------------------------------------------------------------------------------


def test_schemas_accept_what_the_code_writes() -> None:
    record = validator("record.schema.json")
    for each in vectors("records.json")["records"]:
        record.validate(each["json"])
    for each in vectors("documents.json")["documents"]:
        validator(f"{each['kind']}.schema.json").validate(each["json"])
    validator("export-manifest.schema.json").validate(json.loads(vectors("export.json")["manifest"]))
    kinds = set()
    for each in vectors("statements.json")["statements"]:
        kinds.add(each["kind"])
        validator(f"statements/{each['kind']}.schema.json").validate(json.loads(each["payload"]))
    assert {f"statements/{kind}.schema.json" for kind in kinds} == {
        path for path in DOCUMENTS if path.startswith("statements/")
    }


def test_schemas_refuse_what_the_code_refuses_by_schema() -> None:
    record = validator("record.schema.json")
    in_the_spelling_only = {"float", "exponent"}  # JSON Schema takes 1.0 and 1e0 for integers
    names = set()
    for each in vectors("records.json")["rejected"]:
        if each["code"] == "schema" and each["name"] not in in_the_spelling_only:
            names.add(each["name"])
            assert not record.is_valid(json.loads(bytes.fromhex(each["bytes"]))), each["name"]
    assert len(names) >= 5


@pytest.mark.parametrize("path", sorted(DOCUMENTS))
def test_schemas_require_what_the_encoder_always_writes(path: str) -> None:
    schema = json.loads((SCHEMAS / path).read_bytes())
    for each in (schema, *schema.get("$defs", {}).values()):
        assert each["additionalProperties"] is False
        assert "default" not in json.dumps(each)
    if path.startswith("statements/"):
        assert {"kind", "version", "seq", "issued_us"} <= set(schema["required"])


# --- Arrow -----------------------------------------------------------------------------------------------


def test_arrow_columns_are_those_of_the_layout() -> None:
    files = json.loads((SCHEMAS / "export.arrow.json").read_bytes())["files"]
    for file, columns in zip(files, (RECORD_COLUMNS, STATEMENT_COLUMNS), strict=True):
        assert [(c["name"], c["type"], c["nullable"]) for c in file["columns"]] == [
            (c.name, c.type, c.nullable) for c in columns
        ]


# --- CDDL ------------------------------------------------------------------------------------------------


def cddl(rule: str) -> Any:
    """The published CDDL with ``rule`` as its root.

    The tool applies ``.cbor`` in an array to every element, so embedded items are left to their own rules.
    """
    pycddl = pytest.importorskip("pycddl", reason="no wheel for this platform")
    return pycddl.Schema(f"start = {rule}\n" + re.sub(r"bstr \.cbor [a-z0-9-]+", "bstr", CDDL))


def accepts(rule: str, data: bytes) -> bool:
    import pycddl

    try:
        cddl(rule).validate_cbor(data)
    except pycddl.ValidationError:
        return False
    return True


def messages() -> dict[str, list[bytes]]:
    """Real messages by the rule that describes them, embedded ones included."""
    entries = [bytes.fromhex(s["entry"]) for s in vectors("statements.json")["statements"]]
    entries.append(bytes.fromhex(vectors(ML_DSA_44_FILE)["statement"]["entry"]))
    receipts = [bytes.fromhex(r["receipt"]) for r in vectors("receipts.json")["receipts"]]
    keys = [bytes.fromhex(k["cose_key"]) for k in vectors("keys.json")["keys"]]
    signature = bytes.fromhex(vectors("export.json")["signature"])
    return {
        "statement": entries,
        "statement-header": [cbor2.loads(each).value[0] for each in entries],
        "transparent-statement": [bytes.fromhex(vectors("receipts.json")["transparent_statement"]["bytes"])],
        "receipt": receipts,
        "receipt-header": [cbor2.loads(each).value[0] for each in receipts],
        "inclusion-proof": [cbor2.loads(each).value[1][396][-1][0] for each in receipts],
        "batch-body": [bytes.fromhex(vectors("batch.json")["body"])],
        "cose-key": keys,
        # Within an array the tool tries the first choice only: Ed25519 keys.
        "cose-key-set": [cbor2.dumps([cbor2.loads(each) for each in keys[:2]], canonical=True)],
        **{f"{k['algorithm']}-key": [bytes.fromhex(k["cose_key"])] for k in vectors("keys.json")["keys"]},
        "export-signature": [signature],
        "export-header": [cbor2.loads(signature).value[0]],
        **made_here(),
    }


def made_here() -> dict[str, list[bytes]]:
    """Messages that no vector has."""
    key = generate_key()
    seal = settlement.seal(settlement.Digests().contents(), "log.example.com", key).seal
    said = dispute.Dispute(
        customer="shop.example.com",
        bundle="ab" * 32,
        origin="log.example.com",
        tenant="t-1",
        made_us=0,
        own_rows=1,
        records=1,
        matched=0,
        differences=(dispute.Difference(kind="not-in-bundle", own_line=2),),
    )
    signed = base64.b64decode(json.loads(dispute.sign_dispute(said, key))["signature"])
    proof = enrolment.prove("log.example.com", "tsi_x", "gpu-7.example.com", key)
    return {
        "settlement-seal": [seal],
        "settlement-header": [cbor2.loads(seal).value[0]],
        "file-signature": [signed],
        "file-header": [cbor2.loads(signed).value[0]],
        "enrolment-proof": [proof],
        "enrolment-header": [cbor2.loads(proof).value[0]],
    }


def test_cddl_describes_real_messages() -> None:
    found = messages()
    assert set(ROOT_RULES) <= found.keys()
    for rule, samples in found.items():
        for data in samples:
            cddl(rule).validate_cbor(data)


def test_cddl_names_issuers_and_subjects_whole() -> None:
    # RFC 8610 section 3.8.3 anchors regular expressions; the tool does not.
    patterns = {
        name: re.compile(pattern)
        for name, pattern in re.findall(r'^([a-z-]+) = tstr \.regexp "(.*)"$', CDDL, re.MULTILINE)
    }
    found = messages()
    for rule in ("statement-header", "receipt-header"):
        for each in found[rule]:
            claims = cbor2.loads(each)[15]
            assert patterns["issuer"].fullmatch(claims[1])
            assert patterns["subject"].fullmatch(claims[2]), claims[2]
    for each in found["file-header"]:
        assert patterns["file-subject"].fullmatch(cbor2.loads(each)[15][2])


def test_cddl_tells_messages_apart() -> None:
    pytest.importorskip("pycddl", reason="no wheel for this platform")
    found = messages()
    for rule in ("statement-header", "receipt-header", "export-header", "inclusion-proof", "es256-key"):
        for other, samples in found.items():
            if not {rule, other} <= {"es256-key", "cose-key"}:
                assert other == rule or not accepts(rule, samples[0]), (rule, other)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("inclusion-proof", [2, 1, [b"x" * 31]]),
        ("inclusion-proof", [2, -1, []]),
        ("inclusion-proof", [2, 1]),
        ("cose-key", {1: 1, -1: 6, -2: b"x" * 31}),
        ("cose-key", {1: 7, -1: b"x" * 1312}),
        ("cose-key-set", []),
        ("statement-header", {1: -8, 3: "text/plain", 4: b"k" * 32, 15: {1: "a", 2: "tallystick:key:0"}}),
        ("batch-body", [b"x", "records"]),
    ],
)
def test_cddl_refuses_other_things(rule: str, value: object) -> None:
    pytest.importorskip("pycddl", reason="no wheel for this platform")
    assert not accepts(rule, cbor2.dumps(value, canonical=True))
