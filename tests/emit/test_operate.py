"""What operators do to spools: flush, restore, rotate; against the real service."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.core.errors import InvalidError, RefusedError, UnavailableError
from ledger.core.keys import PublicKey, generate_key
from ledger.emit import operate
from ledger.emit.client import Client
from ledger.emit.sender import LogIdentity, read_log_key
from ledger.emit.spool import Spool
from ledger.emit.survey import survey
from ledger.keyfiles import load_private_key
from tests.emit.conftest import MakeRecorder, report
from tests.emit.real_service import RealService, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.emit.sender._SETTLE_S", 0.05)


def client(service: RealService) -> Client:
    return Client(service.url, service.admin_key)


def log(service: RealService) -> LogIdentity:
    found = read_log_key(service.folder / "log.vkey")
    assert found is not None
    return found


def logged(service: RealService, ids: list[str]) -> list[str]:
    return [each for each in ids if is_logged(service, each)]


def is_logged(service: RealService, record_id: str) -> bool:
    answer = urllib3.request(
        "GET",
        f"{service.url}/records/{record_id}",
        headers={"Authorization": f"Bearer {service.admin_key}"},
        retries=False,
    )
    assert answer.status in (200, 404)
    return answer.status == 200


def flush(service: RealService, directory: Path) -> operate.Flushed:
    return operate.flush_spool(
        operate.open_existing(directory),
        client(service),
        log(service),
        operate.signing_key_of(directory, None),
        timeout_s=20,
    )


def test_flush_sends_what_waits_and_says_how_far_it_is(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make_recorder(issuer="tests.example/flush")
    ids = []
    for _ in range(5):
        ids.append(recorder.record(**report()))
        recorder.sync()
    assert recorder.close()
    assert (survey(spool_dir).statements, survey(spool_dir).records) == (6, 5)
    done = flush(service, spool_dir)
    assert done.blocked
    assert done.waiting == 6
    assert "unknown-issuer" in str(done.problem)
    noted = survey(spool_dir)
    assert noted.blocked
    assert "unknown-issuer" in str(noted.problem)
    service.register(recorder)
    told: list[tuple[int, int]] = []
    looked, waiting = [], Spool.waiting
    monkeypatch.setattr(Spool, "waiting", lambda self: looked.append(1) or waiting(self))
    done = operate.flush_spool(
        Spool(spool_dir),
        client(service),
        log(service),
        None,
        timeout_s=20,
        progress=lambda n, of: told.append((n, of)),
    )
    assert (done.sent, done.waiting, done.problem) == (6, 0, None)
    assert told == [(n, 6) for n in (1, 2, 3, 4, 5, 6, 6)]
    assert len(looked) < 6  # a folder may hold a million files: it is not read for each
    assert logged(service, ids) == ids
    assert survey(spool_dir).problem is None


def test_flush_gives_up_in_time(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    recorder.record(**report())
    assert recorder.close()
    began = time.monotonic()
    done = operate.flush_spool(
        Spool(spool_dir), Client("http://127.0.0.1:9", None), None, None, timeout_s=0.6
    )
    assert time.monotonic() - began < 20
    assert not done.blocked
    assert done.waiting == 2
    assert "cannot be reached" in str(done.problem)
    assert "cannot be reached" in str(survey(spool_dir).problem)


def test_a_lost_spool_goes_on_with_its_chain(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path, tmp_path: Path
) -> None:
    name = "tests.example/lost-spool"
    recorder = make_recorder(issuer=name, **service.options)
    service.register(recorder)
    recorder.record(**report())
    assert recorder.close()
    key = load_private_key(spool_dir / "issuer.pem")
    shutil.rmtree(spool_dir)

    with pytest.raises(InvalidError, match="does not say whose"):
        operate.restore_spool(spool_dir, None, client(service), log(service), key)
    with pytest.raises(RefusedError, match="in force"):
        operate.restore_spool(spool_dir, name, client(service), log(service), generate_key())
    assert not spool_dir.exists()
    done = operate.restore_spool(spool_dir, name, client(service), log(service), key)
    assert (done.next_seq, done.signed_anew, done.delivered, done.lost) == (2, 0, 0, 0)

    again = make_recorder(issuer=name, key=key, **service.options)
    more = again.record(**report())
    assert again.close(), again.status()
    assert is_logged(service, more)


def test_a_lost_head_is_restored_with_what_waits(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    """Head and tally gone, and nothing waits that tells: then the ledger does."""
    name = "tests.example/lost-head"
    recorder = make_recorder(issuer=name, **service.options)
    service.register(recorder)
    recorder.record(**report())
    assert recorder.close()
    (spool_dir / "head").write_bytes(bytes(8192))
    (spool_dir / "tally").unlink()
    key = load_private_key(spool_dir / "issuer.pem")
    done = operate.restore_spool(spool_dir, name, client(service), log(service), key)
    assert done.next_seq == 2
    again = make_recorder(issuer=name, **service.options)
    more = again.record(**report())
    assert again.close(), again.status()
    assert is_logged(service, more)


def test_an_old_copy_of_a_spool_is_moved_to_the_end_of_the_chain(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    """A back-up was put back, with a statement that went out meanwhile, and recorded into."""
    name = "tests.example/old-copy"
    recorder = make_recorder(issuer=name)
    service.register(recorder)
    ids = [recorder.record(**report())]
    assert recorder.close()
    copy = spool_dir.with_name("copy")
    shutil.copytree(spool_dir, copy)
    recorder = make_recorder(issuer=name, **service.options)
    for _ in range(3):
        ids.append(recorder.record(**report()))
        assert recorder.sync()
    assert recorder.close()

    shutil.rmtree(spool_dir)
    copy.rename(spool_dir)
    recorder = make_recorder(issuer=name)
    for _ in range(2):
        ids.append(recorder.record(**report()))
        assert recorder.sync()
    assert recorder.close()
    done = flush(service, spool_dir)
    assert done.blocked
    assert "seq-reused" in str(done.problem)

    key = load_private_key(spool_dir / "issuer.pem")
    restored = operate.restore_spool(spool_dir, None, client(service), log(service), key)
    assert restored.signed_anew == 2
    assert restored.lost == 0
    done = flush(service, spool_dir)
    assert (done.waiting, done.problem) == (0, None)
    assert logged(service, ids) == ids


def test_restoring_what_is_right_changes_nothing(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(issuer="tests.example/fine", **service.options)
    service.register(recorder)
    recorder.record(**report())
    assert recorder.close()
    offline = make_recorder(issuer="tests.example/fine")
    offline.record(**report())
    assert offline.close()
    before = {path.name: path.read_bytes() for path in spool_dir.glob("*.statement")}
    key = load_private_key(spool_dir / "issuer.pem")
    done = operate.restore_spool(spool_dir, None, client(service), log(service), key)
    assert (done.next_seq, done.signed_anew) == (3, 0)
    assert {path.name: path.read_bytes() for path in spool_dir.glob("*.statement")} == before


def test_a_running_recorder_keeps_its_spool_from_being_restored(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(issuer="tests.example/busy", **service.options)
    service.register(recorder)
    recorder.record(**report())
    assert recorder.flush()
    key = load_private_key(spool_dir / "issuer.pem")
    with contextlib.ExitStack() as sending:
        while not sending.enter_context(Spool(spool_dir).sending()):
            time.sleep(0.01)  # the recorder has its receipt, and lets go of the lock in a moment
        with pytest.raises(UnavailableError, match="stop the recorders"):
            operate.restore_spool(spool_dir, None, client(service), log(service), key)


def test_a_key_rotates_under_load_and_the_old_one_is_revoked(
    service: RealService, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    """Two recorders of one spool record all the while; nothing is refused, dropped or doubled."""
    name = "tests.example/rotating"
    recorders = [make_recorder(issuer=name, max_age_s=0.0, **service.options) for _ in range(2)]
    service.register(recorders[0])
    stopping = threading.Event()
    ids: list[list[str]] = [[], []]

    def run(number: int) -> None:
        while not stopping.is_set():
            status = recorders[number].status()
            if status.queued + status.spooled < 64:  # as fast as this machine's ledger takes them
                ids[number].append(recorders[number].record(**report()))
            time.sleep(0.001)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    headers = {"Authorization": f"Bearer {service.admin_key}"}
    issuer = name.replace("/", "%2F")

    def register(key: PublicKey) -> None:
        body = {"issuer": name, "public_key_pem": key.to_pem().decode()}
        answer = urllib3.request("POST", f"{service.url}/issuers", headers=headers, json=body)
        assert answer.status == 201, answer.data

    olds = []
    for algorithm in ("ed25519", "ml-dsa-44", "es256"):
        time.sleep(0.3)
        spool = operate.open_existing(spool_dir)
        old, _ = operate.rotate_key(spool, spool_dir / "issuer.pem", register, algorithm=algorithm)
        operate.wait_for_old_key(spool, old.kid, timeout_s=30)
        answer = urllib3.request(
            "POST", f"{service.url}/issuers/{issuer}/keys/{old.kid.hex()}/revoke", headers=headers
        )
        assert answer.status == 200, answer.data
        olds.append(old)
    time.sleep(0.3)
    stopping.set()
    for thread in threads:
        thread.join()
    for recorder in recorders:
        assert recorder.close(30), recorder.status()
        assert recorder.status().dropped == 0
    assert len(ids[0]) > 30
    found = service.get(f"/issuers/{issuer}/keys")
    assert [key.get("revoked_leaf") is None for key in found["keys"]] == [False, False, False, True]
    for each in (*ids[0][::50], *ids[1][::50], ids[0][-1], ids[1][-1]):
        assert is_logged(service, each)
    assert not list(spool_dir.glob("*.next"))


def test_rotation_goes_on_where_it_was_cut_off(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    old = recorder.public_key
    seen: list[bytes] = []

    def down(key: PublicKey) -> None:
        seen.append(key.kid)
        raise UnavailableError("the ledger is down")

    with pytest.raises(UnavailableError):
        operate.rotate_key(Spool(spool_dir), spool_dir / "issuer.pem", down)
    assert recorder.public_key.kid == old.kid
    before, new = operate.rotate_key(
        Spool(spool_dir), spool_dir / "issuer.pem", lambda key: seen.append(key.kid)
    )
    assert before.kid == old.kid
    assert seen == [new.kid, new.kid]
    assert recorder.public_key.kid == new.kid


def test_the_audit_finds_nothing(service: RealService) -> None:
    """Last, over all that the tests above sent."""
    vkey = (service.folder / "log.vkey").read_text().strip()
    found = audit(SqliteSource(service.folder / "ledger.db"), vkey)
    assert found.verdict == "sound", found.findings
