"""Every kind of bad input: its own problem type and status, and not one row of the database changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from ledger import zstd
from ledger.core import cose
from ledger.core import statements as st
from ledger.core.canonical import encode_canonical
from ledger.core.cose import encode_cbor
from ledger.core.keys import generate_key
from ledger.core.records import Quality, Usage, encode_record
from ledger.service import batches, entries
from ledger.service.problem_types import PROBLEM_TYPES
from tests.build import Issuer, SealedBatch, batch_body, make_deployment, make_records, seal_lines, sign_raw
from tests.service.conftest import BATCH, COSE, Harness

REFERENCE = {
    route.path: {
        code
        for answer in route.responses.values()
        for code in answer["content"].get("application/problem+json", {}).get("examples", {})
    }
    for route in (*entries.router.routes, *batches.router.routes)
    if isinstance(route, APIRoute)
}
"""What the API reference says that each address can refuse with."""

Built = tuple[str, bytes, dict[str, str]]
CASES: dict[str, tuple[str, int, Callable[[Harness], Built]]] = {}


def case(code: str, status: int) -> Callable[[Callable[[Harness], Any]], Callable[[Harness], Any]]:
    """Name a case after its function. The function does the set-up and returns what to send."""

    def register(build: Callable[[Harness], Any]) -> Callable[[Harness], Any]:
        def built(h: Harness) -> Built:
            made = build(h)
            if isinstance(made, SealedBatch):
                return "/batches", made.body, {"Content-Type": BATCH}
            if isinstance(made, st.SignedStatement):
                return "/entries", made.entry, {"Content-Type": COSE}
            return made

        CASES[build.__name__] = (code, status, built)
        return build

    return register


def records(h: Harness, count: int = 3, **changes: Any) -> list[Any]:
    return make_records(count, h.ledger.digest, **changes)


def as_batch(body: bytes, **headers: str) -> Built:
    return "/batches", body, {"Content-Type": BATCH} | headers


def as_entry(body: bytes, **headers: str) -> Built:
    return "/entries", body, {"Content-Type": COSE} | headers


def with_lines(h: Harness, change: Callable[[bytes], bytes]) -> SealedBatch:
    """A batch whose first record line was changed before the root was computed and signed."""
    good = records(h)
    first, rest = encode_record(good[0]), b"".join(encode_record(r) + b"\n" for r in good[1:])
    return seal_lines(h.issuer, good, change(first) + b"\n" + rest)


def edited(line: bytes, **members: Any) -> bytes:
    document = json.loads(line)
    for path, value in members.items():
        *outer, last = path.split("__")
        place = document
        for name in outer:
            place = place[name]
        place[last] = value
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


# --- signatures and issuers ---


@case("bad-signature", 422)
def wrong_signature(h: Harness) -> Built:
    batch = h.issuer.batch(records(h))
    broken = batch.statement.entry[:-1] + bytes([batch.statement.entry[-1] ^ 1])
    return as_batch(batch_body(broken, batch.lines))


@case("bad-signature", 422)
def changed_payload(h: Harness) -> Built:
    batch = h.issuer.batch(records(h))
    return as_batch(batch_body(batch.statement.entry.replace(b'"dropped":0', b'"dropped":1'), batch.lines))


@case("unknown-issuer", 403)
def unknown_issuer(h: Harness) -> SealedBatch:
    return Issuer(name="stranger.example.com").batch(records(h))


@case("unknown-issuer", 403)
def known_issuer_with_another_key(h: Harness) -> SealedBatch:
    h.issuer.key = generate_key()
    return h.issuer.batch(records(h))


@case("unknown-issuer", 403)
def name_of_another_issuer(h: Harness) -> SealedBatch:
    h.issuer.name = "somebody-else.example.com"
    return h.issuer.batch(records(h))


@case("revoked-key", 403)
def revoked_key(h: Harness) -> SealedBatch:
    h.log_batch()
    kid = h.issuer.key.public.kid.hex()
    answer = h.post(f"/issuers/{h.issuer.name}/keys/{kid}/revoke", b"{}", "application/json", "admin")
    assert answer.status_code == 200
    return h.issuer.batch(records(h, first=10))


@case("bad-algorithm", 422)
def algorithm_of_another_key(h: Harness) -> Built:
    header = {cose.ALG: -7, cose.KID: h.issuer.key.public.kid}
    payload = encode_canonical(st.Heartbeat(dropped=0, **h.issuer.chain()))
    return as_entry(
        sign_raw(h.issuer, payload, subject=f"tallystick:heartbeat:{h.issuer.seq}", header=header)
    )


@case("kind-not-allowed", 422)
def key_statement_by_an_issuer(h: Harness) -> st.SignedStatement:
    key = generate_key().public
    return h.issuer.sign(
        st.IssuerKey(
            action="add",
            issuer=h.issuer.name,
            kid=key.kid.hex(),
            key=encode_cbor(key.to_cose_key()).hex(),
            **h.issuer.chain(),
        )
    )


# --- the chain ---


@case("seq-gap", 409)
def seq_gap(h: Harness) -> SealedBatch:
    h.issuer.heartbeat()  # never sent
    return h.issuer.batch(records(h))


@case("seq-reused", 409)
def seq_reused(h: Harness) -> SealedBatch:
    chain = (h.issuer.seq, h.issuer.prev)
    h.log_batch()
    h.issuer.seq, h.issuer.prev = chain
    return h.issuer.batch(records(h, first=10))


@case("wrong-prev", 409)
def wrong_prev(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h), prev="00" * 32)


# --- statement and records do not fit each other ---


@case("wrong-root", 422)
def wrong_root(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h), root="11" * 32)


@case("wrong-root", 422)
def records_swapped(h: Harness) -> Built:
    batch = h.issuer.batch(records(h))
    first, second, third, _ = batch.lines.split(b"\n")
    return as_batch(batch_body(batch.statement.entry, b"\n".join([second, first, third, b""])))


@case("wrong-count", 422)
def record_missing(h: Harness) -> Built:
    batch = h.issuer.batch(records(h))
    return as_batch(batch_body(batch.statement.entry, batch.lines.partition(b"\n")[2]))


@case("wrong-count", 422)
def no_records_at_all(h: Harness) -> Built:
    return as_batch(batch_body(h.issuer.batch(records(h)).statement.entry, b""))


@case("wrong-summary", 422)
def totals_lie(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h), totals=st.Totals(input_tokens=1, output_tokens=1))


@case("wrong-summary", 422)
def period_lies(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h), first_us=1_700_000_000_000_000)


@case("records-missing", 422)
def batch_sent_to_entries(h: Harness) -> Built:
    return as_entry(h.issuer.batch(records(h)).statement.entry)


@case("records-unexpected", 422)
def heartbeat_sent_to_batches(h: Harness) -> Built:
    return as_batch(batch_body(h.issuer.heartbeat().entry, b""))


# --- records ---


@case("duplicate-record", 409)
def duplicate_record_within_a_batch(h: Harness) -> SealedBatch:
    return h.issuer.batch([*records(h), records(h)[0]])


@case("duplicate-record", 409)
def duplicate_record_across_batches(h: Harness) -> SealedBatch:
    h.log_batch()
    return h.issuer.batch([*records(h, first=10), *records(h, count=1)])


@case("unknown-document", 422)
def unknown_deployment(h: Harness) -> SealedBatch:
    return h.issuer.batch(make_records(2, make_deployment(model="never published")))


@case("unknown-document", 422)
def unknown_factor_set(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h, factors="ab" * 32))


@case("time-in-future", 422)
def record_in_the_far_future(h: Harness) -> SealedBatch:
    later = time.time_ns() // 1000 + 86_400_000_000
    return h.issuer.batch(records(h, start_us=later))


@case("time-in-future", 422)
def statement_in_the_far_future(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h), issued_us=time.time_ns() // 1000 + 3_600_000_000)


@case("time-too-old", 422)
def seconds_instead_of_microseconds(h: Harness) -> SealedBatch:
    return h.issuer.batch(records(h, start_us=1_760_000_000))


@case("schema", 422)
def float_amount(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: edited(line, energy__energy_uj=1.5))


@case("schema", 422)
def negative_amount(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: edited(line, usage__input_tokens=-1))


@case("schema", 422)
def amount_beyond_2_to_53(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: edited(line, usage__input_tokens=2**53))


@case("schema", 422)
def unknown_member(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: edited(line, prompt="what is logged here?"))


@case("schema", 422)
def upper_case_digest(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: edited(line, request="AB" * 32))


@case("not-canonical", 400)
def white_space(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: line.replace(b":", b": ", 1))


@case("not-canonical", 400)
def doubled_member(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: b'{"carbon_ng":1,"carbon_ng":2,' + line[1:])


@case("not-canonical", 400)
def unsorted_members(h: Harness) -> SealedBatch:
    def unsort(line: bytes) -> bytes:
        document = json.loads(line)
        return json.dumps(dict(reversed(document.items())), separators=(",", ":")).encode()

    return with_lines(h, unsort)


@case("malformed-json", 400)
def not_json(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: line[:-1])


@case("malformed-json", 400)
def last_newline_missing(h: Harness) -> Built:
    batch = h.issuer.batch(records(h))
    return as_batch(batch_body(batch.statement.entry, batch.lines[:-1]))


@case("too-deep", 400)
def deep_record(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: line[:-1] + b',"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}")


@case("too-deep", 400)
def deep_statement(h: Harness) -> Built:
    return as_entry(sign_raw(h.issuer, b'{"a":' * 5_000 + b"1" + b"}" * 5_000))


@case("record-too-large", 413)
def large_record(h: Harness) -> SealedBatch:
    def grow(line: bytes) -> bytes:
        return line[:-1] + b',"x":"' + b"x" * 17_000 + b'"}'

    return with_lines(h, grow)


@case("inconsistent-record", 422)
def more_cached_than_input(h: Harness) -> SealedBatch:
    usage = Usage(input_tokens=1, output_tokens=1, cached_input_tokens=2)
    return h.issuer.batch(records(h, usage=usage))


@case("inconsistent-record", 422)
def ends_before_it_starts(h: Harness) -> SealedBatch:
    return with_lines(h, lambda line: edited(line, ended_us=1_700_000_000_000_000))


# --- encodings and bodies ---


@case("malformed-cbor", 400)
def garbage(h: Harness) -> Built:
    return as_batch(b"\xff" * 100)


@case("malformed-cbor", 400)
def empty_body(h: Harness) -> Built:
    return as_batch(b"")


@case("malformed-cbor", 400)
def trailing_bytes(h: Harness) -> Built:
    return as_batch(h.issuer.batch(records(h)).body + b"\x00")


@case("malformed-cbor", 400)
def indefinite_length(h: Harness) -> Built:
    batch = h.issuer.batch(records(h))
    return as_batch(b"\x9f" + batch.body[1:] + b"\xff")


@case("malformed-cbor", 400)
def promises_more_than_it_has(h: Harness) -> Built:
    return as_batch(b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff")


@case("malformed-cbor", 400)
def deep_cbor(h: Harness) -> Built:
    return as_entry(b"\x81" * 50_000 + b"\x00")


@case("malformed-batch", 400)
def three_parts(h: Harness) -> Built:
    return as_batch(encode_cbor([b"", b"", b""]))


@case("malformed-batch", 400)
def text_parts(h: Harness) -> Built:
    return as_batch(encode_cbor(["a", "b"]))


@case("malformed-cose", 400)
def not_a_sign1(h: Harness) -> Built:
    return as_entry(encode_cbor([1, 2, 3]))


@case("malformed-statement", 400)
def not_a_statement(h: Harness) -> Built:
    return as_entry(sign_raw(h.issuer, b"{}", header={cose.CONTENT_TYPE: "application/json"}))


@case("schema", 422)
def unknown_kind(h: Harness) -> Built:
    return as_entry(sign_raw(h.issuer, b'{"issued_us":1,"kind":"wish","seq":0,"version":1}'))


def deployment_with(h: Harness, **names: str) -> Built:
    payload = st.DeploymentStatement(deployment=make_deployment(**names), **h.issuer.chain())
    return as_entry(sign_raw(h.issuer, encode_canonical(payload)))


@case("schema", 422)
def model_that_no_text_column_holds(h: Harness) -> Built:
    return deployment_with(h, model="a\0b")


@case("schema", 422)
def version_that_no_text_column_holds(h: Harness) -> Built:
    return deployment_with(h, version="\0")


@case("malformed-statement", 400)
def wrong_subject(h: Harness) -> Built:
    payload = encode_canonical(st.Heartbeat(dropped=0, **h.issuer.chain()))
    return as_entry(sign_raw(h.issuer, payload, subject="tallystick:heartbeat:999"))


@case("malformed-statement", 400)
def receipts_attached(h: Harness) -> Built:
    return as_entry(st.transparent_statement(h.issuer.heartbeat(), [b"receipt"]))


@case("statement-too-large", 413)
def large_statement(h: Harness) -> Built:
    return as_entry(sign_raw(h.issuer, b" " * 66_000))


@case("body-too-large", 413)
def oversized_body(h: Harness) -> Built:
    return as_batch(b"\x00" * 1_000_001)


@case("body-too-large", 413)
def oversized_entry(h: Harness) -> Built:
    return as_entry(b"\x00" * 200_001)


@case("compressed-bomb", 413)
def compressed_bomb(h: Harness) -> Built:
    return as_batch(zstd.compress(bytes(200_000_000)), **{"Content-Encoding": "zstd"})


@case("bad-compression", 400)
def not_zstd(h: Harness) -> Built:
    return as_batch(h.issuer.batch(records(h)).body, **{"Content-Encoding": "zstd"})


@case("bad-compression", 400)
def truncated_zstd(h: Harness) -> Built:
    body = zstd.compress(h.issuer.batch(records(h)).body)
    return as_batch(body[:-3], **{"Content-Encoding": "zstd"})


@case("bad-compression", 400)
def two_frames(h: Harness) -> Built:
    body = zstd.compress(h.issuer.batch(records(h)).body)
    return as_batch(body + body, **{"Content-Encoding": "zstd"})


@case("unsupported-encoding", 415)
def unknown_encoding(h: Harness) -> Built:
    return as_batch(b"x", **{"Content-Encoding": "br"})


@case("unsupported-media-type", 415)
def wrong_content_type(h: Harness) -> Built:
    return as_batch(h.issuer.batch(records(h)).body, **{"Content-Type": "application/cbor"})


@case("unsupported-media-type", 415)
def no_content_type(h: Harness) -> Built:
    return as_entry(h.issuer.heartbeat().entry, **{"Content-Type": ""})


@dataclass(frozen=True)
class Case:
    name: str

    def __str__(self) -> str:
        return self.name


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_and_changes_nothing(name: str, harness: Harness) -> None:
    code, status, build = CASES[name]
    path, body, headers = build(harness)
    before = harness.everything()
    checkpoint = harness.get("/checkpoint").text
    answer = harness.client.post(
        path, content=body, headers=harness.headers("emit", Accept="application/json") | headers
    )
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["status"]) == (f"/problems/{code}", status), problem
    assert answer.status_code == status == PROBLEM_TYPES[code].status
    assert problem["title"] == PROBLEM_TYPES[code].title
    assert problem["detail"]
    assert problem["remedy"]
    assert code in REFERENCE[path]
    assert harness.everything() == before
    assert harness.get("/checkpoint").text == checkpoint
    # The service is as it was: what is right is still taken.
    assert harness.get("/healthz").status_code == 200
    assert harness.client.app.state.service.budget.taken == 0


def test_the_listed_kinds_have_problem_types_of_their_own() -> None:
    kinds = (
        "wrong_signature", "unknown_issuer", "revoked_key", "seq_gap", "seq_reused", "wrong_prev",
        "wrong_root", "oversized_body", "deep_record", "compressed_bomb", "duplicate_record_within_a_batch",
        "record_in_the_far_future", "float_amount", "wrong_content_type", "unknown_deployment",
        "white_space", "batch_sent_to_entries",
    )  # fmt: skip
    assert len({CASES[kind][0] for kind in kinds}) == len(kinds)


def test_good_input_follows_bad_input(harness: Harness) -> None:
    bad = harness.issuer.batch(records(harness), advance=False, root="11" * 32)
    assert harness.send(bad).status_code == 422
    harness.log_batch()


def test_quality_metrics_are_bounded(harness: Harness) -> None:
    many = {f"m{i}": Quality(value=i, scale=0) for i in range(33)}
    line = encode_record(records(harness, count=1)[0])
    wide = edited(line, quality={name: {"scale": q.scale, "value": q.value} for name, q in many.items()})
    batch = seal_lines(harness.issuer, records(harness, count=1), wide + b"\n")
    assert harness.send(batch).json()["type"] == "/problems/schema"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=some.binary(max_size=300), path=some.sampled_from(["/entries", "/batches"]), packed=some.booleans()
)
def test_random_bytes_never_break_the_service(harness: Harness, body: bytes, path: str, packed: bool) -> None:
    headers = {"Content-Type": COSE if path == "/entries" else BATCH}
    if packed:
        body, headers = zstd.compress(body), headers | {"Content-Encoding": "zstd"}
    answer = harness.client.post(path, content=body, headers=harness.headers("emit") | headers)
    assert answer.status_code == 400


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_flipped_bytes_are_always_refused(harness: Harness, data: some.DataObject) -> None:
    batch = harness.issuer.batch(records(harness), advance=False)
    body = bytearray(batch.body)
    at = data.draw(some.integers(0, len(body) - 1))
    body[at] ^= data.draw(some.integers(1, 255))
    before = harness.get("/checkpoint").text
    answer = harness.client.post(
        "/batches", content=bytes(body), headers=harness.headers("emit", **{"Content-Type": BATCH})
    )
    assert 400 <= answer.status_code < 500, answer.content
    assert harness.get("/checkpoint").text == before
