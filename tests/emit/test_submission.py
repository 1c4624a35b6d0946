"""Evaluations and corrections against the real service: sent once, and only if they count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from ledger.core.errors import InvalidError, RefusedError, UnavailableError
from ledger.core.records import document_digest
from ledger.core.statements import Correction, Evaluation, decode_statement
from ledger.emit import submission
from ledger.emit.client import Client
from ledger.emit.corrections import correction, fetch_record, read_corrections, restatement
from ledger.emit.evaluations import evaluation, read_evaluations
from ledger.emit.sender import read_log_key
from ledger.emit.signing import SigningKey
from ledger.emit.spool import Spool
from tests.build import make_deployment
from tests.emit.conftest import MakeRecorder, report
from tests.emit.real_service import RealService, running_service

DIGEST = document_digest(make_deployment())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


class Evaluator:
    """Somebody with a spool and a registered key."""

    def __init__(self, service: RealService, directory: Path, issuer: str | None = None) -> None:
        self.service = service
        self.spool = Spool(directory, issuer)
        with self.spool.locked():
            self.key = SigningKey(None, directory)
        self.log = read_log_key(service.folder / "log.vkey")

    @property
    def client(self) -> Client:
        return Client(self.service.url, self.service.admin_key)

    def register(self) -> None:
        answer = urllib3.request(
            "POST",
            self.service.url + "/issuers",
            headers={"Authorization": f"Bearer {self.service.admin_key}"},
            json={
                "issuer": self.spool.issuer,
                "public_key_pem": self.key.current().public.to_pem().decode(),
            },
        )
        assert answer.status in (200, 201), answer.data

    def say(self, *contents: submission.Content, timeout_s: float = 20) -> list[submission.Submitted]:
        assert self.log is not None
        return submission.submit(self.spool, self.key, contents, self.client, self.log, timeout_s=timeout_s)


@pytest.fixture
def evaluator(service: RealService, tmp_path: Path, request: pytest.FixtureRequest) -> Evaluator:
    made = Evaluator(service, tmp_path / "evaluator", f"eval.example.com/{request.node.name}")
    made.register()
    return made


def _size(service: RealService) -> int:
    note = urllib3.request("GET", service.url + "/checkpoint").data.decode()
    return int(note.split("\n")[1])


def payload_of(service: RealService, leaf: int) -> Any:
    answer = urllib3.request(
        "GET",
        f"{service.url}/entries/{leaf}/statement",
        headers={"Authorization": f"Bearer {service.admin_key}"},
    )
    return decode_statement(answer.data).payload


def test_an_evaluation_is_logged_once(service: RealService, evaluator: Evaluator) -> None:
    said = evaluation("judge 1.2", {"accuracy": "0.871", "toxicity": "0"}, deployment=DIGEST)
    (first,) = evaluator.say(said)
    size = _size(service)
    (again,) = evaluator.say(said)
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.leaf_index, again.receipt) == (first.leaf_index, first.receipt)
    assert _size(service) == size
    payload = payload_of(service, first.leaf_index)
    assert isinstance(payload, Evaluation)
    assert {name: (q.value, q.scale) for name, q in payload.metrics.items()} == {
        "accuracy": (871, 3),
        "toxicity": (0, 0),
    }
    # The same twice in one call is one statement; another value is another.
    other = evaluation("judge 1.2", {"accuracy": "0.872"}, deployment=DIGEST)
    assert len(evaluator.say(said, other, other)) == 2
    assert _size(service) == size + 1
    # A restart knows what was said.
    reopened = Evaluator(service, evaluator.spool.directory)
    assert [each.is_new for each in reopened.say(said, other)] == [False, False]
    assert _size(service) == size + 1


def test_a_crash_before_or_after_the_append_says_nothing_twice(
    service: RealService, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = evaluation("judge", {"verifier_score": "-3.25"}, deployment=DIGEST)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    from ledger.emit.chain import Chain

    size = _size(service)
    for place, name in ((Chain, "append"), (submission, "_deliver")):  # noted only; appended, but not sent
        with monkeypatch.context() as patched:
            patched.setattr(place, name, crash)
            with pytest.raises(KeyboardInterrupt):
                evaluator.say(said)
    assert _size(service) == size
    (found,) = evaluator.say(said)
    assert _size(service) == size + 1 == found.leaf_index + 1


def test_nothing_is_lost_while_the_ledger_is_down(service: RealService, evaluator: Evaluator) -> None:
    said = [evaluation("judge", {"accuracy": f"0.{n}"}, deployment=DIGEST) for n in range(1, 6)]
    service.stop()
    try:
        with pytest.raises(UnavailableError, match="5 statements wait"):
            evaluator.say(*said, timeout_s=0.5)
    finally:
        service.start()
    found = evaluator.say(*said)
    assert [each.leaf_index for each in found] == list(range(found[0].leaf_index, found[0].leaf_index + 5))


def test_an_unregistered_key_is_refused_and_told_how(service: RealService, tmp_path: Path) -> None:
    stranger = Evaluator(service, tmp_path / "stranger", "eval.example.com/stranger")
    said = evaluation("judge", {"accuracy": "0.5"}, deployment=DIGEST)
    with pytest.raises(RefusedError, match="tallystick issuers add"):
        stranger.say(said)
    stranger.register()
    assert stranger.say(said)[0].leaf_index > 0


def test_a_record_is_corrected_by_its_own_issuer_only(
    service: RealService, make_recorder: MakeRecorder, evaluator: Evaluator
) -> None:
    recorder = make_recorder(issuer="tests.example/corrected", **service.options)
    service.register(recorder)
    record_id = recorder.record(**report())
    assert recorder.flush(30)
    client = evaluator.client
    with pytest.raises(RefusedError, match="would not count"):
        fetch_record(client, record_id, evaluator.spool.issuer)
    with pytest.raises(InvalidError, match="does not have it"):
        fetch_record(client, "01a20a9b-7ea7-77ff-a448-fa57bb0fd68e", recorder.issuer)
    record, data = fetch_record(client, record_id, recorder.issuer)
    wanted = restatement(
        {"record": record_id, "reason": "meter", "energy_uj": 7, "method": "measured", "source": "rack meter"}
    )
    said = correction(wanted, record, data)
    with pytest.raises(InvalidError, match="no currency"):
        correction(restatement({"record": record_id, "reason": "x", "cost_nano": 1}), record, data)
    # Into the recorder's own spool, while it runs.
    spool = Spool(_spool_of(recorder))
    with spool.locked():
        key = SigningKey(None, spool.directory)
    assert evaluator.log is not None
    (found,) = submission.submit(spool, key, [said], client, evaluator.log, timeout_s=20)
    payload = payload_of(service, found.leaf_index)
    assert isinstance(payload, Correction)
    assert payload.energy.energy_uj == 7  # type: ignore[union-attr]
    recorder.record(**report())
    assert recorder.flush(30), recorder.status()  # its chain goes on


def _spool_of(recorder: Any) -> Path:
    return Path(recorder._spool.directory)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("record,accuracy\n{id},1.01\n", "outside of its range"),
        ("record,accuracy\n{id},91%\n", "not a decimal number"),
        ("record,accuracy\n{id},NaN\n", "not a decimal number"),
        ("record,accuracy\n{id},1e-12\n", "12 decimal places"),
        ("record,x\n{id},1e60\n", "more digits"),
        ("record,perplexity\n{id},0.5\n", "outside of its range"),
        ("record,accuracy\n{id}\n", "1 cells"),
        ("record,accuracy,accuracy\n{id},1,1\n", "column twice"),
        ("accuracy\n1\n", "must name"),
        ("record,deployment,accuracy\n{id},{id},1\n", "exactly one"),
        ("record,accuracy\n", "no evaluation"),
        ("record,accuracy\n{id},\n", "no metric"),
        ('[{"record": "{id}", "metrics": {"accuracy": NaN}}]', "no number"),
        ('[{"record": "{id}", "metrics": {"accuracy": {"value": 1, "scale": 10}}}]', "scale 10"),
        ('[{"record": "{id}", "metrics": {"accuracy": {"value": true, "scale": 1}}}]', "integers"),
        ('[{"record": "{id}", "metrics": {"accuracy": false}}]', "not a decimal"),
        ('[{"record": "{id}", "metric": {}}]', "must be an object"),
        ('{"record": "{id}"}', "not an array"),
        ("[" * 100_000, "is not JSON"),
        ('record,accuracy\n"{id},1\n', "is not CSV"),
    ],
)
def test_unsound_evaluations_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        read_evaluations(text.replace("{id}", "01a20a9b-7ea7-77ff-a448-fa57bb0fd68e").encode(), evaluator="x")


def test_csv_and_json_say_the_same() -> None:
    about = "01a20a9b-7ea7-77ff-a448-fa57bb0fd68e"
    table = f"record,accuracy,human_rating\n{about},0.50,-4\n".encode()
    rows = [{"record": about, "metrics": {"accuracy": {"value": 50, "scale": 2}, "human_rating": -4}}]
    assert read_evaluations(table, evaluator="x") == read_evaluations(
        json.dumps(rows).encode(), evaluator="x"
    )
    exact = json.dumps(rows).replace('{"value": 50, "scale": 2}', "0.50").encode()
    assert read_evaluations(table, evaluator="x") == read_evaluations(exact, evaluator="x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("record,reason,energy\nx,y,1\n", "has 'energy'"),
        ("record,energy_uj\nx,1\n", "needs reason"),
        ("record,reason,energy_uj\nx,y,1.5\n", "whole number"),
        ("record,reason,energy_uj\nx,y,-1\n", "whole number"),
        ("record,reason,energy_uj\nx,y,9007199254740992\n", "whole number"),
        ("record,reason,low_uj\nx,y,1\n", "restates no figure"),
        ("record,reason,low_uj,carbon_ng\nx,y,1,1\n", "without energy_uj"),
        ("record,reason,energy_uj,method\nx,y,1,guessed\n", "not one of"),
        ('[{"record": "x", "reason": "y", "energy_uj": true}]', "whole number"),
        ("record,reason,energy_uj\n", "no correction"),
        ("[1]", "not an array of objects"),
    ],
)
def test_unsound_corrections_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        read_corrections(text.encode())
