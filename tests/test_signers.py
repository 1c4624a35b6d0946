"""Keys on PKCS #11 tokens: a real SoftHSM token signs as a log's and a witness's key."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.keys import generate_key
from ledger.keyfiles import save_private_key, write_private
from ledger.signers import Pkcs11Uri, load_signer, open_pkcs11, parse_pkcs11_uri

MODULES = [f"{folder}/softhsm/libsofthsm2.so" for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib")]
MODULE = next((Path(each) for each in MODULES if Path(each).exists()), None)


def test_a_pem_is_a_signer(tmp_path: Path) -> None:
    key = generate_key()
    save_private_key(tmp_path / "key.pem", key)
    assert load_signer(tmp_path / "key.pem").public == key.public


def test_a_uri() -> None:
    text = "pkcs11:token=my%20log;object=k?module-path=/lib/x.so&pin-source=file:/etc/pin"
    assert parse_pkcs11_uri(text) == Pkcs11Uri(Path("/lib/x.so"), "my log", "k", None, Path("/etc/pin"))
    assert parse_pkcs11_uri("pkcs11:token=t;id=%01%ff?module-path=/l").id == b"\x01\xff"


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:", "pkcs11:token=t;object=k", "pkcs11:object=k?module-path=/l",
        "pkcs11:token=t?module-path=/l",
        "pkcs11:token=t;token=u;object=k?module-path=/l", "pkcs11:token=t;object=k;type=cert?module-path=/l",
        "pkcs11:token=t;object=k?module-path=/l&pin-value=1234", "pkcs11:token;object=k?module-path=/l",
        "pkcs11:token=t;id=%0?module-path=/l", "file:/x", "pkcs11:" + "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_uri(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_pkcs11_uri(text)
    assert caught.value.code == "bad-key"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an Ed25519 key on a fresh SoftHSM token."""
    if MODULE is None:
        pytest.skip("SoftHSM is not installed (Debian: softhsm2)")
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    command = [
        "softhsm2-util",
        "--init-token",
        "--free",
        "--label",
        "logs",
        "--pin",
        "1234",
        "--so-pin",
        "5678",
    ]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()
    with library.get_token(token_label="logs").open(user_pin="1234", rw=True) as session:
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC_EDWARDS,
            {pkcs11.Attribute.EC_PARAMS: b"\x13\x0cedwards25519"},
            local=True,
        )
        parameters.generate_keypair(
            mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, label="log-2026"
        )
    write_private(tmp_path / "pin", b"1234\n")
    return f"pkcs11:token=logs;object=log-2026?module-path={MODULE}&pin-source={tmp_path / 'pin'}"


def test_a_token_signs_a_log(token: str, tmp_path: Path) -> None:
    from ledger.audit import audit, open_source
    from ledger.core.log_keys import log_verifier_key
    from ledger.core.note import format_vkey
    from ledger.store import Sequencer, migrate, open_store
    from ledger.store.append import create_log

    write_private(tmp_path / "log.pem", token.encode())
    key = load_signer(tmp_path / "log.pem")
    message = b"signed on the token"
    key.public.verify(key.sign(message), message)
    assert "1234" not in repr(key)
    store = open_store(tmp_path / "ledger.db")
    migrate(store)
    create_log(store, key, "log.example.com/hsm")
    sequencer = Sequencer(store, key)
    sequencer.start()
    sequencer.add_key("gpu.example/x", generate_key().public).result(30)
    sequencer.stop()
    store.close()
    vkey = format_vkey(log_verifier_key("log.example.com/hsm", key.public))
    assert audit(open_source(tmp_path / "ledger.db"), vkey).verdict == "sound"


def test_commands_take_a_key_on_a_token(token: str, tmp_path: Path) -> None:
    from tests.build import ORIGIN
    from tests.cli.conftest import fill, run_command

    path, uri = tmp_path / "ledger-data", tmp_path / "uri"
    write_private(uri, token.encode())
    assert run_command("init", path, "--origin", ORIGIN).exit_code == 0
    fill(path)
    for command in (
        ("log-key", "rotate", path, "--key-file", uri),
        ("log-key", "retire", path),
        ("backup", path, tmp_path / "backup"),
        ("restore", tmp_path / "backup", tmp_path / "restored", "--log-key", path / "keys" / "log.pem"),
        ("audit", tmp_path / "restored", "--log-key", tmp_path / "restored" / "log.vkey"),
        ("export", "parquet", tmp_path / "restored", tmp_path / "export"),
        ("verify", tmp_path / "export", "--log-key", path / "log.vkey"),
    ):
        done = run_command(*command)
        assert done.exit_code == 0, (command, done.output)


def test_a_token_cosigns(token: str, tmp_path: Path) -> None:
    from ledger.core.cosignature import cosign, verify_cosignature
    from ledger.core.note import parse_note
    from ledger.witness.cosigning import witness_verifier_key
    from tests.witness.logs import MadeLog

    key, again = open_pkcs11(parse_pkcs11_uri(token)), open_pkcs11(parse_pkcs11_uri(token))
    assert key.public == again.public  # two keys of one token in one process
    text = parse_note(MadeLog().note(5)).text
    vkey = witness_verifier_key("w.example", key.public)
    assert verify_cosignature(text, cosign(text, "w.example", key, 1_700_000_000), vkey) == 1_700_000_000


def test_what_is_not_on_the_token(token: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no key or several"):
        open_pkcs11(parse_pkcs11_uri(token.replace("log-2026", "log-2027")))
    with pytest.raises(InvalidError, match="no key or several"):
        open_pkcs11(parse_pkcs11_uri(token.replace("token=logs", "token=other")))
    write_private(tmp_path / "wrong", b"9999")
    with pytest.raises(InvalidError, match="PIN is refused"):
        open_pkcs11(parse_pkcs11_uri(token.replace(str(tmp_path / "pin"), str(tmp_path / "wrong"))))
    with pytest.raises(UnavailableError):
        open_pkcs11(parse_pkcs11_uri(token.replace(str(MODULE), "/nowhere.so")))
