"""The log's own keys: ML-DSA-44, rotation, retirement, freezing; what auditors make of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.audit import audit, open_source, verify_data
from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.log_keys import log_verifier_key
from ledger.core.note import format_vkey, parse_note
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.store import Sequencer, migrate, open_store, queries
from ledger.store.append import create_log
from ledger.store.log_keys import (
    check_log_key,
    freeze_log,
    frozen,
    log_keys,
    log_verifier_keys,
    retire_log_key,
    rotate_log_key,
)
from tests.build import ORIGIN, Issuer, Ledger, make_deployment, make_ledger, make_records


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Ledger]:
    made = make_ledger(tmp_path)
    yield made
    made.store.close()


def batch(log: Ledger, first: int):
    return log.issuer.batch(make_records(2, log.digest, first=first))


def verdict(log: Ledger, tmp_path: Path, *keys: PrivateKey):
    vkeys = "\n".join(format_vkey(log_verifier_key(ORIGIN, key.public)) for key in keys)
    url = log.store.engine.url.render_as_string(hide_password=False)
    return audit(open_source(url), vkeys)


def receipt_of(log: Ledger, leaf: int) -> bytes:
    with log.store.read() as connection:
        return queries.receipt(connection, leaf)


def head_of(log: Ledger) -> bytes:
    with log.store.read() as connection:
        return queries.log_head(connection).checkpoint.encode()


def test_a_log_with_a_post_quantum_key(tmp_path: Path) -> None:
    key, issuer = generate_key("ml-dsa-44"), Issuer()
    store = open_store(tmp_path / "ledger.db")
    migrate(store)
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key, published=tmp_path / "checkpoint")
    sequencer.start()
    sequencer.add_key(issuer.name, issuer.key.public).result(30)
    sequencer.stop()
    made = Ledger(store, key, issuer, make_deployment())
    made.append(issuer.deployment(made.deployment))
    made.append(batch(made, 0))
    assert verdict(made, tmp_path, key).verdict == "sound"
    vkey = format_vkey(log_verifier_key(ORIGIN, key.public))
    with store.read() as connection:
        statement = queries.statement(connection, 3)
    report = verify_data(receipt_of(made, 3), vkey, statement=statement.entry)
    assert report.verdict == "sound", report
    Sequencer(store, key, published=tmp_path / "checkpoint").start()
    store.close()


def test_a_key_of_another_kind_signs_no_log(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ledger.db")
    migrate(store)
    with pytest.raises(InvalidError, match="Ed25519 or ML-DSA-44"):
        create_log(store, generate_key("es256"), ORIGIN)
    store.close()


@pytest.mark.parametrize("kind", ["ed25519", "ml-dsa-44"])
def test_rotation(log: Ledger, tmp_path: Path, kind: str) -> None:
    old, new = log.log_key, generate_key(kind)
    log.append(batch(log, 0))
    before = {leaf: receipt_of(log, leaf) for leaf in range(4)}
    done = rotate_log_key(log.store, old, new, reason="yearly")
    keys = [log_verifier_key(ORIGIN, each.public) for each in (old, new)]
    for key in keys:  # the checkpoint of the handover is signed by both
        assert open_checkpoint(head_of(log), key).size == done.leaf_index + 1
    with pytest.raises(CorruptError) as caught:
        log.append(batch(log, 10))  # with the old key: a replica that nobody told
    assert caught.value.code == "other-log-key"
    log.issuer.seq, log.issuer.prev = log.issuer.seq - 1, log.issuer.prev
    with log.store.read() as connection:
        log.issuer.prev = next(
            i.last_leaf for i in queries.issuers(connection) if i.issuer == log.issuer.name
        )
        assert log_verifier_keys(connection) == (keys[1], keys[0])
    log.log_key = new
    log.append(batch(log, 20))
    for leaf, receipt in before.items():  # given again byte for byte
        assert receipt_of(log, leaf) == receipt
    with log.store.read() as connection:
        for leaf, key in ((3, old), (4, new), (5, new)):
            statement = queries.statement(connection, leaf)
            verify_receipt(decode_receipt(receipt_of(log, leaf)), statement.leaf_hash, key.public)
            assert statement.kid == (log.issuer.key if leaf != 4 else old).public.kid
    assert [each.name for each in parse_note(head_of(log)).signatures] == [ORIGIN]
    assert verdict(log, tmp_path, old, new).verdict == "sound"
    assert verdict(log, tmp_path, new, old).verdict == "sound"
    alone = verdict(log, tmp_path, new)  # the old key's receipts and checkpoints cannot be checked
    assert {each.code for each in alone.findings} >= {"bad-genesis"}
    assert verdict(log, tmp_path, old).verdict != "sound"
    assert verdict(log, tmp_path, generate_key(), new).verdict == "refuted"


def test_both_sign_until_the_old_one_is_retired(log: Ledger, tmp_path: Path) -> None:
    old, new = log.log_key, generate_key()
    rotate_log_key(log.store, old, new)
    sequencer = Sequencer(log.store, new, beside=[old], published=tmp_path / "checkpoint")
    sequencer.start()
    sequencer.add_key("other.example/x", generate_key().public).result(30)
    sequencer.stop()
    for key in (old, new):
        assert open_checkpoint(head_of(log), log_verifier_key(ORIGIN, key.public)).size == 5
    # Who knows the old key alone learns from the log that it handed over.
    alone = verdict(log, tmp_path, old)
    assert alone.verdict == "sound", alone.findings
    assert any("handed over" in note for note in alone.notes)
    with pytest.raises(InvalidError):
        retire_log_key(log.store, new, new.public)
    with pytest.raises(RefusedError):
        retire_log_key(log.store, new, generate_key().public)
    retire_log_key(log.store, new, old.public, reason="lost")
    with pytest.raises(CorruptError):
        open_checkpoint(head_of(log), log_verifier_key(ORIGIN, old.public))
    assert verdict(log, tmp_path, old, new).verdict == "sound"
    with log.store.read() as connection:
        assert [each.revoked_leaf for each in log_keys(connection)] == [5, None]
        assert frozen(connection) is None


def test_rotation_is_signed_by_the_key_in_force(log: Ledger) -> None:
    with pytest.raises(CorruptError) as caught:
        rotate_log_key(log.store, generate_key(), generate_key())
    assert caught.value.code == "other-log-key"
    with pytest.raises(RefusedError) as again:
        rotate_log_key(log.store, log.log_key, log.log_key)
    assert again.value.code == "key-exists"
    first, second = generate_key(), generate_key()
    rotate_log_key(log.store, log.log_key, first)
    with pytest.raises(CorruptError):
        rotate_log_key(log.store, log.log_key, second)
    rotate_log_key(log.store, first, second)
    with log.store.read() as connection:
        assert [each.kid for each in log_keys(connection)] == [
            each.public.kid for each in (log.log_key, first, second)
        ]


def test_a_frozen_log_takes_nothing_and_is_served(log: Ledger, tmp_path: Path) -> None:
    log.append(batch(log, 0))
    successor, onwards = generate_key(), "log.example.com/2027"
    done = freeze_log(log.store, log.log_key, successor=onwards, successor_key=successor.public)
    with log.store.read() as connection:
        end = frozen(connection)
    assert end is not None
    assert (end.leaf_index, end.successor, end.kid) == (
        done.leaf_index, "log.example.com/2027", successor.public.kid.hex(),
    )  # fmt: skip
    for attempt in (
        lambda: log.append(batch(log, 10)),
        lambda: rotate_log_key(log.store, log.log_key, generate_key()),
        lambda: freeze_log(log.store, log.log_key),
    ):
        with pytest.raises(RefusedError, match=f"log with {onwards}") as caught:
            attempt()
        assert caught.value.code == "log-frozen"
    assert verdict(log, tmp_path, log.log_key).verdict == "sound"
    from starlette.testclient import TestClient

    from ledger.service import create_app

    with TestClient(create_app(log.store, log.log_key)) as client:
        told = client.get("/log").json()
        assert (told["frozen"], told["successor"], told["size"]) == (True, "log.example.com/2027", 5)
        assert open_checkpoint(
            client.get("/checkpoint").content, log_verifier_key(ORIGIN, log.log_key.public)
        )


def test_a_log_that_goes_on_after_its_end_is_refuted(log: Ledger, tmp_path: Path, monkeypatch) -> None:
    freeze_log(log.store, log.log_key)
    monkeypatch.setattr("ledger.store.append.check_log_key", lambda connection, log: None)
    monkeypatch.setattr("ledger.store.log_keys.frozen", lambda connection: None)
    log.append(batch(log, 0))
    found = verdict(log, tmp_path, log.log_key)
    assert found.verdict == "refuted"
    assert {each.code for each in found.findings} == {"revoked-key"}


def test_the_command(tmp_path: Path) -> None:
    from cli.folder import Folder
    from tests.cli.conftest import json_of, run_command

    folder = tmp_path / "ledger"
    assert run_command("init", folder, "--origin", ORIGIN).exit_code == 0
    first = json_of(run_command("log-key", "show", folder, "--json"))
    assert len(first["keys"]) == 1
    rotated = json_of(run_command("log-key", "rotate", folder, "--algorithm", "ml-dsa-44", "--json"))
    assert len(rotated["vkeys"]) == 2
    assert rotated["vkeys"] == (folder / "log.vkey").read_text().split()
    assert run_command("log-key", "rotate", folder).exit_code == 2  # the old one is still beside it
    issuer = tmp_path / "issuer.pem"
    run_command("keys", "generate", issuer)
    assert run_command("issuers", "add", folder, "--name", "x.example/y", "--key", issuer).exit_code in (0, 2)
    assert run_command("audit", folder, "--log-key", folder / "log.vkey").exit_code == 0
    assert run_command("log-key", "retire", folder).exit_code == 0
    assert run_command("log-key", "retire", folder).exit_code == 2
    assert run_command("log-key", "freeze", folder).exit_code == 2  # not confirmed
    assert (
        run_command("log-key", "freeze", folder, "--successor", "log.example.com/n", "--yes").exit_code == 0
    )
    assert (
        json_of(run_command("log-key", "show", folder, "--json"))["frozen"]["successor"]
        == "log.example.com/n"
    )
    assert run_command("audit", folder, "--log-key", folder / "log.vkey").exit_code == 0
    store = Folder(folder).open()
    with store.read() as connection:
        assert len(log_keys(connection)) == 2
    store.close()


def test_a_rotation_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    """The log has the new key, but the files were not moved: a crash between the two."""
    from cli.folder import Folder
    from ledger.keyfiles import load_private_key, save_private_key
    from tests.cli.conftest import run_command

    path = tmp_path / "ledger"
    assert run_command("init", path, "--origin", ORIGIN).exit_code == 0
    folder, new = Folder(path), generate_key()
    save_private_key(folder.log_key.with_name("log-new.pem"), new)
    store = folder.open()
    rotate_log_key(store, load_private_key(folder.log_key), new)
    store.close()
    assert run_command("log-key", "rotate", path).exit_code == 0
    assert load_private_key(folder.log_key) == new
    assert folder.log_key.with_name("log-old.pem").is_file()


def test_checking_a_key_that_is_in_force(log: Ledger) -> None:
    from ledger.store._write import Log

    with log.store.read() as connection:
        check_log_key(connection, Log(ORIGIN, log.log_key))
