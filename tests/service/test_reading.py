"""Records, roll-ups, issuers and documents: filters, paging, exact bytes, exact sums."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ledger.core.checkpoint import open_checkpoint
from ledger.core.cose import encode_cbor
from ledger.core.errors import InvalidError
from ledger.core.keys import generate_key
from ledger.core.merkle import leaf_hash, verify_inclusion
from ledger.core.note import parse_vkey
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.core.records import document_digest, encode_record
from ledger.core.statements import decode_statement, verify_statement
from ledger.service.records import decode_cursor, encode_cursor
from tests.build import HOUR_US, START_US, make_deployment, make_factor_set, make_records
from tests.service.conftest import Harness


@pytest.fixture
def filled(harness: Harness) -> Harness:
    """Three batches: 30 records of the first hour, 20 of the next, 10 of another deployment."""
    harness.log_batch(30)
    harness.log_batch(20, start_us=START_US + HOUR_US)
    other = make_deployment(model="another", version="2")
    harness.extra["other"] = document_digest(other)
    assert harness.send(harness.issuer.deployment(other)).status_code == 201
    batch = harness.issuer.batch(make_records(10, other, first=200))
    assert harness.send(batch).status_code == 201
    return harness


def pages(h: Harness, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = h.get(f"/records?{query}{cursor}").json()
        assert set(page) <= {"records", "next"}
        found += page["records"]
        if "next" not in page:
            return found
        assert page["records"]
        cursor = f"&cursor={page['next']}"


@pytest.mark.parametrize("limit", [1, 7, 30, 60, 1000])
def test_paging_gives_every_record_once(filled: Harness, limit: int) -> None:
    found = pages(filled, f"limit={limit}")
    places = [(each["leaf_index"], each["position"]) for each in found]
    assert len(places) == 60
    assert places == sorted(set(places))


def test_records_come_exactly_as_they_were_logged(filled: Harness) -> None:
    answer = filled.get("/records?limit=30")
    for n, record in enumerate(make_records(30, filled.ledger.digest)):
        assert b'"record":' + encode_record(record) in answer.content
        assert answer.json()["records"][n]["issuer"] == filled.issuer.name


def test_default_page_has_a_hundred(filled: Harness) -> None:
    filled.log_batch(60, salt="more")
    page = filled.get("/records").json()
    assert len(page["records"]) == 100
    assert page["next"]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 60),
        ("model=another", 10),
        ("model=unknown", 0),
        ("tenant=t-0", 20 + 0),
        ("tenant=nobody", 0),
        ("issuer=gpu-7.example.com/llama", 60),
        ("issuer=nobody", 0),
        (f"from_us={START_US + HOUR_US}", 20),
        (f"to_us={START_US + 5000}", 5),
        (f"from_us={START_US + 5000}&to_us={START_US + 10_000}", 5),
        (f"from_us={START_US}&to_us={START_US}", 0),
    ],
)
def test_filters(filled: Harness, query: str, count: int) -> None:
    for limit in (3, 1000):
        assert len(pages(filled, f"limit={limit}&{query}")) == count


def test_filter_by_deployment(filled: Harness) -> None:
    assert len(pages(filled, f"deployment={filled.extra['other']}")) == 10
    assert len(pages(filled, f"deployment={filled.ledger.digest}&model=another")) == 0


@pytest.mark.parametrize(
    "query",
    [
        "tennant=t-0", "limit=0", "limit=1001", "limit=x", "from_us=-1", "from_us=1.5", "from_us=2025-01-01",
        f"to_us={2**53}", "from_us=2&to_us=1", "deployment=xyz", "tenant=", "model=", "limit=1&limit=2",
        "from_us=", "Tenant=t-0", "offset=3", "tenant=%00", "model=a%00", "issuer=%00b",
    ],
)  # fmt: skip
def test_bad_queries_are_refused(harness: Harness, query: str) -> None:
    answer = harness.get(f"/records?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/bad-parameter")


@pytest.mark.parametrize(
    "cursor", ["x", "AAAA", "A" * 64, "!!!", "_" * 11, "AAAAAAAAAAB", "AAAAAAAAAAA=", "%C3%A9", "MQ"]
)
def test_bad_cursors_are_refused(harness: Harness, cursor: str) -> None:
    answer = harness.get(f"/records?cursor={cursor}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/bad-cursor")


@given(place=some.integers(0, 2**63 - 1))
def test_cursors_come_back(place: int) -> None:
    assert decode_cursor(encode_cursor(place)) == place


@given(text=some.text(max_size=12))
def test_no_other_cursor_is_understood(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert encode_cursor(decode_cursor(text)) == text


def test_one_record(filled: Harness) -> None:
    record = make_records(5, filled.ledger.digest)[4]
    answer = filled.get(f"/records/{record.id}")
    assert encode_record(record) in answer.content
    found = answer.json()
    assert (found["leaf_index"], found["position"], found["issuer"]) == (3, 4, filled.issuer.name)
    assert found["record"]["id"] == record.id


@pytest.mark.parametrize(
    ("record_id", "status", "code"),
    [
        ("0199c8e0-0000-7000-8000-000000000000", 404, "not-found"),
        ("0199c8e0", 400, "bad-record-id"),
        ("zz99c8e0-0000-7000-8000-000000000000", 400, "bad-record-id"),
        ("1" * 65, 400, "bad-parameter"),
    ],
)
def test_records_that_are_not_there(harness: Harness, record_id: str, status: int, code: str) -> None:
    for suffix in ("", "/proof"):
        answer = harness.get(f"/records/{record_id}{suffix}")
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}")


@pytest.mark.parametrize("position", [0, 17, 29])
def test_record_proof_verifies_from_keys_alone(filled: Harness, position: int) -> None:
    record = make_records(30, filled.ledger.digest)[position]
    proof = filled.get(f"/records/{record.id}/proof").json()
    line = base64.b64decode(proof["record"])
    assert line == encode_record(record)
    statement = decode_statement(base64.b64decode(proof["statement"]))
    verify_statement(statement, filled.issuer.key.public)
    path = [bytes.fromhex(each) for each in proof["path"]]
    root = bytes.fromhex(statement.payload.root)  # type: ignore[union-attr]
    verify_inclusion(leaf_hash(line), proof["position"], 30, path, root)
    receipt = decode_receipt(base64.b64decode(proof["receipt"]))
    verify_receipt(receipt, statement.leaf_hash, filled.ledger.log_key.public)
    assert receipt.leaf_index == proof["leaf_index"]
    vkey = parse_vkey(filled.get("/log", None).json()["vkey"])
    assert open_checkpoint(proof["checkpoint"].encode(), vkey).size == 7


# --- roll-ups ---


def test_rollups_equal_the_sums_over_records(filled: Harness) -> None:
    everything = [each["record"] for each in pages(filled, "limit=1000")]

    def expected(wanted: list[dict[str, Any]]) -> dict[str, int]:
        return {
            "records": len(wanted),
            "input_tokens": sum(r["usage"]["input_tokens"] for r in wanted),
            "output_tokens": sum(r["usage"]["output_tokens"] for r in wanted),
            "cached_input_tokens": sum(r["usage"]["cached_input_tokens"] for r in wanted),
            "energy_uj": sum(r["energy"]["energy_uj"] for r in wanted),
            "modelled_records": len(wanted),
            "measured_records": 0,
        }

    def check(row: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
        sums = expected(wanted)
        assert {name: row[name] for name in sums} == sums
        assert "carbon_ng" not in row  # unknown is absent, not zero

    (total,) = filled.get("/rollups").json()["rows"]
    check(total, everything)
    for row in filled.get("/rollups?by=tenant").json()["rows"]:
        check(row, [r for r in everything if r["tenant"] == row["tenant"]])
    rows = filled.get("/rollups?by=hour&by=deployment").json()["rows"]
    assert len(rows) == 3
    for row in rows:
        check(
            row,
            [
                r
                for r in everything
                if r["deployment"] == row["deployment"] and r["started_us"] // HOUR_US * 3600 == row["hour"]
            ],
        )
    assert {row["model"]: row["records"] for row in filled.get("/rollups?by=model").json()["rows"]} == {
        "another": 10,
        "SmolLM2-135M-Instruct": 50,
    }
    (day,) = filled.get("/rollups?by=day").json()["rows"]
    assert day["day"] % 86_400 == 0


@pytest.mark.parametrize(
    ("query", "records"),
    [
        (f"from_us={START_US + HOUR_US}", 20),
        (f"to_us={START_US + HOUR_US}", 40),
        ("model=another", 10),
        ("tenant=t-1", 20),
    ],
)
def test_rollup_filters(filled: Harness, query: str, records: int) -> None:
    (row,) = filled.get(f"/rollups?{query}").json()["rows"]
    assert row["records"] == records


@pytest.mark.parametrize(
    "query",
    ["by=issuer", "by=", "bye=day", "from_us=1", f"to_us={START_US + 1}", "tenant=a&tenant=b", "limit=3"],
)
def test_bad_rollups_are_refused(harness: Harness, query: str) -> None:
    answer = harness.get(f"/rollups?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/bad-parameter")


def test_no_rows_without_records(harness: Harness) -> None:
    assert harness.get("/rollups?by=day").json() == {"rows": []}
    assert harness.get("/records").json() == {"records": []}


def test_sums_beyond_64_bits_are_exact(harness: Harness) -> None:
    from ledger.core.records import Usage

    big = 2**53 - 1
    for n in range(3):
        usage = Usage(input_tokens=big, output_tokens=0)
        harness.log_batch(1, usage=usage, salt=str(n))
    (row,) = harness.get("/rollups").json()["rows"]
    assert row["input_tokens"] == 3 * big


# --- issuers and documents ---


def test_issuers(harness: Harness) -> None:
    mine = harness.issuer.key.public
    listed = harness.get("/issuers").json()["issuers"]
    assert [each["issuer"] for each in listed] == [harness.issuer.name, "log.example.com/tallystick"]
    assert listed[0] == {
        "issuer": harness.issuer.name,
        "next_seq": 1,
        "last_leaf": harness.issuer.prev.hex(),
        "keys": [
            {
                "kid": mine.kid.hex(),
                "algorithm": "ed25519",
                "cose_key": encode_cbor(mine.to_cose_key()).hex(),
                "added_leaf": 1,
            }
        ],
    }
    for name in (harness.issuer.name, harness.issuer.name.replace("/", "%2F")):
        assert harness.get(f"/issuers/{name}/keys").json() == listed[0]
    assert harness.get("/issuers/nobody/keys").status_code == 404


@pytest.mark.parametrize("algorithm", ["ed25519", "es256", "ml-dsa-44"])
@pytest.mark.parametrize("form", ["pem", "cose"])
def test_registering_keys(harness: Harness, algorithm: str, form: str) -> None:
    key = generate_key(algorithm)
    body = {"issuer": "new.example.com/a"}
    if form == "pem":
        body["public_key_pem"] = key.public.to_pem().decode()
    else:
        body["cose_key"] = encode_cbor(key.public.to_cose_key()).hex()
    answer = harness.client.post("/issuers", json=body, headers=harness.headers("admin"))
    assert answer.status_code == 201
    assert answer.json() == {"issuer": "new.example.com/a", "kid": key.public.kid.hex(), "leaf_index": 3}
    # The log itself says so, for auditors.
    statement = decode_statement(harness.get("/entries/3/statement").content)
    verify_statement(statement, harness.ledger.log_key.public)
    assert (statement.kind, statement.payload.action) == ("key", "add")  # type: ignore[union-attr]
    second = generate_key(algorithm)
    body = {"issuer": "new.example.com/a", "public_key_pem": second.public.to_pem().decode()}
    assert harness.client.post("/issuers", json=body, headers=harness.headers("admin")).status_code == 201
    statement = decode_statement(harness.get("/entries/4/statement").content)
    assert statement.payload.action == "rotate"  # type: ignore[union-attr]
    # Both keys may sign.
    from tests.build import Issuer

    issuer = Issuer(name="new.example.com/a", key=key)
    assert harness.send(issuer.heartbeat()).status_code == 201
    issuer.key = second
    assert harness.send(issuer.heartbeat()).status_code == 201


GOOD_PEM = generate_key().public.to_pem().decode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed-json"),
        (b"{", 400, "malformed-json"),
        (b"[]", 422, "schema"),
        (b"{}", 422, "schema"),
        (json.dumps({"issuer": "a", "public_key_pem": GOOD_PEM, "admin": True}).encode(), 422, "schema"),
        (json.dumps({"issuer": "a"}).encode(), 422, "schema"),
        (json.dumps({"issuer": "a", "public_key_pem": GOOD_PEM, "cose_key": "a0"}).encode(), 422, "schema"),
        (json.dumps({"issuer": "a", "public_key_pem": "nonsense"}).encode(), 422, "bad-key"),
        (json.dumps({"issuer": "a", "cose_key": "a0"}).encode(), 422, "bad-key"),
        (json.dumps({"issuer": "a", "cose_key": "ff"}).encode(), 400, "malformed-cbor"),
        (json.dumps({"issuer": "a", "cose_key": "xyz"}).encode(), 422, "schema"),
        (json.dumps({"issuer": "", "public_key_pem": GOOD_PEM}).encode(), 422, "schema"),
        (
            json.dumps({"issuer": "https://a b", "public_key_pem": GOOD_PEM}).encode(),
            422,
            "bad-issuer-name",
        ),
        (
            json.dumps({"issuer": "log.example.com/tallystick", "public_key_pem": GOOD_PEM}).encode(),
            422,
            "bad-issuer-name",
        ),
        (b"[" * 10_000, 400, "malformed-json"),
        (b" " * 20_001, 413, "body-too-large"),
    ],
)
def test_bad_registrations_change_nothing(harness: Harness, body: bytes, status: int, code: str) -> None:
    before = harness.everything()
    answer = harness.post("/issuers", body, "application/json", "admin")
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}"), answer.content
    assert harness.everything() == before


def test_private_keys_are_not_taken(harness: Harness) -> None:
    pem = generate_key().to_pem().decode()
    answer = harness.post(
        "/issuers",
        json.dumps({"issuer": "a", "public_key_pem": pem}).encode(),
        "application/json",
        "admin",
    )
    assert answer.json()["type"] == "/problems/bad-key"
    assert pem[30:60] not in answer.text


def test_a_key_belongs_to_one_issuer(harness: Harness) -> None:
    before = harness.everything()
    body = {"issuer": "thief.example.com", "public_key_pem": harness.issuer.key.public.to_pem().decode()}
    answer = harness.client.post("/issuers", json=body, headers=harness.headers("admin"))
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/key-exists")
    assert harness.everything() == before


def test_revoking(harness: Harness) -> None:
    kid = harness.issuer.key.public.kid.hex()
    path = f"/issuers/{harness.issuer.name.replace('/', '%2F')}/keys/{kid}/revoke"
    answer = harness.post(path, b'{"reason":"host was sold"}', "application/json", "admin")
    assert answer.status_code == 200
    assert answer.json() == {"issuer": harness.issuer.name, "kid": kid, "leaf_index": 3}
    statement = decode_statement(harness.get("/entries/3/statement").content)
    assert statement.payload.reason == "host was sold"  # type: ignore[union-attr]
    assert harness.get("/issuers").json()["issuers"][0]["keys"][0]["revoked_leaf"] == 3
    before = harness.everything()
    again = harness.post(path, b"", "application/json", "admin")
    assert (again.status_code, again.json()["type"]) == (404, "/problems/unknown-key")
    assert harness.everything() == before


@pytest.mark.parametrize(
    ("issuer", "kid", "status", "code"),
    [
        ("gpu-7.example.com/llama", "00" * 32, 404, "unknown-key"),
        ("nobody", "00" * 32, 404, "unknown-key"),
        ("gpu-7.example.com/llama", "xyz", 400, "bad-parameter"),
        ("log.example.com/tallystick", "00" * 32, 422, "kind-not-allowed"),
    ],
)
def test_bad_revocations(harness: Harness, issuer: str, kid: str, status: int, code: str) -> None:
    answer = harness.post(f"/issuers/{issuer}/keys/{kid}/revoke", b"{}", "application/json", "admin")
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}")


def test_documents(harness: Harness) -> None:
    factors = make_factor_set()
    assert harness.send(harness.issuer.factors(factors)).status_code == 201
    deployments = harness.get("/deployments").json()["deployments"]
    assert deployments == [
        {
            "digest": harness.ledger.digest,
            "leaf_index": 2,
            "model": "SmolLM2-135M-Instruct",
            "version": "Q8_0",
            "deployment": json.loads(json.dumps(deployments[0]["deployment"])),
        }
    ]
    assert harness.get(f"/deployments/{harness.ledger.digest}").json() == deployments[0]
    (listed,) = harness.get("/factors").json()["factors"]
    assert (listed["digest"], listed["leaf_index"]) == (document_digest(factors), 3)
    assert harness.get(f"/factors/{listed['digest']}").json() == listed
    assert listed["factors"]["name"] == "example grid"
    # Each in its own place.
    assert harness.get(f"/factors/{harness.ledger.digest}").status_code == 404
    assert harness.get(f"/deployments/{listed['digest']}").status_code == 404
    assert harness.get("/deployments/XYZ").status_code == 400
