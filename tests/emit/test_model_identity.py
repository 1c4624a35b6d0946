"""Model identity: the manifest digest against the package of the specification; the memory; signed models."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.errors import InvalidError, RefusedError
from ledger.core.records import Deployment, Weights
from ledger.emit import _digest_cache
from ledger.emit.model_identity import file_digest, find_model, hub_revision, identified, manifest, weights_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEPLOYMENT = Deployment(model="m", engine="e")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TALLYSTICK_MODEL_TRUST", raising=False)
    return tmp_path / "xdg" / "tallystick" / "digests.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded safetensors model, with what else lies in a download."""
    folder = tmp_path / "model"
    for name, data in {
        "config.json": b"{}",
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "onnx/model.onnx": b"graph",
        ".gitattributes": b"git's",
        ".git/HEAD": b"git's",
        ".cache/huggingface/download/config.json.metadata": b"a time",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def by_package(folder: Path, *ignored: str) -> str:
    """The digest that model-signing states as the subject."""
    from model_signing import hashing

    found = hashing.Config().set_ignored_paths(paths=ignored).set_allow_symlinks(True).hash(folder)
    root = hashlib.sha256()
    for each in found.resource_descriptors():
        root.update(each.digest.digest_value)
    return root.hexdigest()


# --- digests ---------------------------------------------------------------------------------------------


def test_a_folder_has_the_manifest_digest_of_the_specification(model: Path) -> None:
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
    ]
    assert [name for name, _ in manifest(model)] == names
    root = hashlib.sha256(b"".join(hashlib.sha256((model / name).read_bytes()).digest() for name in names))
    assert weights_of(model) == Weights(method="openssf-model-signing", digest=root.hexdigest())
    assert root.hexdigest() == by_package(model, ".cache/huggingface")


NAMES = st.text("ab1_é", min_size=1, max_size=3)  # nothing that sorts before a slash: see below


@settings(max_examples=30, deadline=None)
@given(files=st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=8)))
def test_any_folder_has_the_digest_that_the_package_computes(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("model")
    for name, data in files.items():
        path = folder / name
        if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if files:
        assert weights_of(folder, cache=folder.parent / "cache.json").digest == by_package(folder)
    else:
        with pytest.raises(InvalidError, match="no files"):
            weights_of(folder)


def test_names_are_ordered_as_text_where_the_package_does_not(tmp_path: Path) -> None:
    (tmp_path / "m" / "a").mkdir(parents=True)
    (tmp_path / "m" / "a" / "b").write_bytes(b"1")
    (tmp_path / "m" / "a-b").write_bytes(b"2")
    assert [name for name, _ in manifest(tmp_path / "m")] == ["a-b", "a/b"]  # "-" comes before "/"
    assert weights_of(tmp_path / "m").digest != by_package(tmp_path / "m")


def test_a_hub_cache_of_links_is_read_through_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub" / "models--org--name"
    snapshot = hub / "snapshots" / COMMIT
    (hub / "blobs").mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    (hub / "blobs" / "x").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/x")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_model("org/name") == find_model("org/name", COMMIT) == snapshot
    assert find_model("org/name", "v2") is None
    assert find_model("org/other") is None
    assert find_model("../etc/passwd") is None
    assert find_model(str(tmp_path)) == tmp_path
    assert weights_of(snapshot).digest == by_package(snapshot)
    assert hub_revision(snapshot / "model.safetensors") == Weights(method="hub-revision", digest=COMMIT)
    assert hub_revision(tmp_path) is None
    (hub / "blobs" / "x").unlink()
    with pytest.raises(InvalidError) as error:
        weights_of(snapshot)
    assert error.value.code == "bad-model"


def test_a_file_has_its_own_digest_and_the_parts_of_a_split_one_are_taken_together(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"all")
    assert weights_of(tmp_path / "m.gguf") == Weights(method="file", digest=sha(b"all"))
    parts = [tmp_path / f"big-0000{at}-of-00002.gguf" for at in (1, 2)]
    parts[0].write_bytes(b"one")
    with pytest.raises(InvalidError, match="part of the model is missing"):
        weights_of(parts[0])
    parts[1].write_bytes(b"two")
    root = sha(bytes.fromhex(sha(b"one")) + bytes.fromhex(sha(b"two")))
    assert weights_of(parts[0]) == Weights(method="openssf-model-signing", digest=root)


# --- the memory ------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []
    real = _digest_cache._hash
    monkeypatch.setattr(
        _digest_cache, "_hash", lambda path, told: (names.append(path.name), real(path, told))[1]
    )
    return names


def test_a_restart_reads_nothing_and_a_changed_file_is_read_again(model, own_cache, hashed) -> None:
    first = weights_of(model)
    assert len(hashed) == 5
    assert weights_of(model) == first
    assert len(hashed) == 5
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o600
    shard = model / "model-00002-of-00002.safetensors"
    before = shard.stat()
    shard.write_bytes(b"too")  # as long, and its modification time is set back
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = weights_of(model)
    assert hashed[5:] == [shard.name]
    assert second.digest == by_package(model, ".cache/huggingface") != first.digest


def test_the_memory_is_bounded_and_forgets_the_longest_unused(tmp_path, own_cache, monkeypatch) -> None:
    monkeypatch.setattr(_digest_cache, "_MAX_ENTRIES", 3)
    for name in "abcd":
        (tmp_path / name).write_text(name)
        file_digest(tmp_path / name)
    assert [Path(name).name for name in json.loads(own_cache.read_text())] == ["b", "c", "d"]


@pytest.mark.parametrize("content", ["not json", "[]", '{"x": 1}', '{"x": [1, 2]}', "[" * 100_000])
def test_a_broken_memory_costs_only_time(tmp_path, content) -> None:
    path, cache = tmp_path / "m.gguf", tmp_path / "cache.json"
    path.write_bytes(b"one")
    cache.write_text(content)
    assert file_digest(path, cache=cache) == sha(b"one")


def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path) -> None:
    (tmp_path / "m").write_bytes(b"one")
    (tmp_path / "file").write_text("")
    assert file_digest(tmp_path / "m", cache=tmp_path / "file" / "cache.json") == sha(b"one")


def test_many_threads_lose_nothing(tmp_path, own_cache) -> None:
    for at in range(20):
        (tmp_path / f"{at}").write_text(str(at))
    threads = [threading.Thread(target=file_digest, args=(tmp_path / f"{at}",)) for at in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(json.loads(own_cache.read_text())) == 20


# --- deployments -----------------------------------------------------------------------------------------


def test_a_deployment_names_the_commit_until_the_digest_is_known(tmp_path, monkeypatch) -> None:
    snapshot = tmp_path / "models--o--n" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    go, real = threading.Event(), _digest_cache._hash
    monkeypatch.setattr(_digest_cache, "_hash", lambda *given: (go.wait(30), real(*given))[1])
    get = identified(DEPLOYMENT, snapshot, wait_s=0.01)
    assert get().weights == Weights(method="hub-revision", digest=COMMIT)
    go.set()
    next(each for each in threading.enumerate() if each.name == "tallystick-weights").join(30)
    assert get().weights == weights_of(snapshot)
    assert identified(DEPLOYMENT, None)() is DEPLOYMENT


def test_a_model_that_is_not_there_is_said_so_and_stops_nothing(tmp_path, caplog) -> None:
    assert identified(DEPLOYMENT, tmp_path / "none", wait_s=None)() == DEPLOYMENT
    assert "no model" in caplog.text


# --- signed models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EC key with its public half, and the key of somebody else."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    folder = tmp_path_factory.mktemp("keys")
    for name in ("signer", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        (folder / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
    return folder


def sign(path: Path, signature: Path, keys: Path, *options: str) -> None:
    """As a publisher does, by the package's own command."""
    run = [sys.executable, "-m", "model_signing", "sign", "key", str(path), "--private_key"]
    done = subprocess.run(
        [*run, str(keys / "signer.pem"), "--signature", str(signature), *options], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_signed_model_is_verified_once_and_its_signed_digest_recorded(model, keys, hashed) -> None:
    import base64

    (model / ".cache" / "huggingface" / "download" / "config.json.metadata").unlink()
    sign(model, model / "model.sig", keys)
    bundle = json.loads((model / "model.sig").read_bytes())
    subject = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["subject"]
    unsigned = weights_of(model)
    assert unsigned.digest == subject[0]["digest"]["sha256"]  # the same, trusted or not
    hashed.clear()
    assert weights_of(model, trust=keys / "signer.pub") == unsigned
    (model / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("of another day")
    assert weights_of(model, trust=keys / "signer.pub") == unsigned
    assert hashed == []


def test_a_certificate_chain_is_verified(model, keys, tmp_path) -> None:
    root, leaf = make_certificates(tmp_path)
    run = [sys.executable, "-m", "model_signing", "sign", "certificate", str(model), "--signature"]
    run += [str(model / "model.sig"), "--ignore-paths", str(model / ".cache")]
    run += ["--private_key", str(tmp_path / "leaf.key"), "--signing_certificate", str(leaf)]
    done = subprocess.run([*run, "--certificate_chain", str(root)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert weights_of(model, trust=root) == weights_of(model)
    other, _ = make_certificates(tmp_path / "other")
    with pytest.raises(RefusedError):
        weights_of(model, trust=other)


@pytest.mark.parametrize("method", ["blake3", "shards"])
def test_other_hashes_and_shards_keep_the_digest_that_was_signed(model, keys, method) -> None:
    from model_signing import hashing, signing

    how = hashing.Config().set_ignored_paths(paths=["model.sig", ".cache/huggingface"])
    if method == "shards":
        how.use_shard_serialization(shard_size=2)
    else:
        how.use_file_serialization(hashing_algorithm="blake3")
    config = signing.Config().use_elliptic_key_signer(private_key=keys / "signer.pem")
    config.set_hashing_config(how).sign(model, model / "model.sig")
    assert weights_of(model, trust=keys / "signer.pub").digest != weights_of(model).digest


@pytest.mark.parametrize("damage", ["file", "added", "removed", "signature", "key", "garbage", "no-key"])
def test_what_does_not_verify_has_no_weights_and_is_told(model, keys, damage, caplog, monkeypatch) -> None:
    sign(model, model / "model.sig", keys, "--ignore-paths", str(model / ".cache"))
    trust = keys / "signer.pub"
    monkeypatch.setenv("TALLYSTICK_MODEL_TRUST", str(trust))
    assert identified(DEPLOYMENT, model, wait_s=None)().weights == weights_of(model, trust=trust)
    match damage:
        case "file":
            (model / "model-00002-of-00002.safetensors").write_bytes(b"evil")
        case "added":
            (model / "modeling_evil.py").write_text("import os")
        case "removed":
            (model / "config.json").unlink()
        case "signature":
            bundle = json.loads((model / "model.sig").read_bytes())
            signature = bundle["dsseEnvelope"]["signatures"][0]
            signature["sig"] = (
                signature["sig"][:20] + ("A" if signature["sig"][20] != "A" else "B") + signature["sig"][21:]
            )
            (model / "model.sig").write_text(json.dumps(bundle))
        case "key":
            monkeypatch.setenv("TALLYSTICK_MODEL_TRUST", str(keys / "other.pub"))
        case "garbage":
            (model / "model.sig").write_text('{"dsseEnvelope": 1}')
        case "no-key":
            monkeypatch.setenv("TALLYSTICK_MODEL_TRUST", str(keys / "none.pub"))
    with caplog.at_level(logging.ERROR):
        assert identified(DEPLOYMENT, model, wait_s=None)().weights is UNSET
    assert "states no digest of its weights" in caplog.text


def test_a_signed_file_is_verified_and_has_its_plain_digest(tmp_path, keys) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"all")
    sign(path, tmp_path / "m.gguf.sig", keys)
    assert weights_of(path, trust=keys / "signer.pub") == Weights(method="file", digest=sha(b"all"))
    path.write_bytes(b"al1")
    with pytest.raises(RefusedError):
        weights_of(path, trust=keys / "signer.pub")


def test_without_the_package_a_signed_model_is_not_taken_for_verified(
    model, keys, monkeypatch, caplog
) -> None:
    sign(model, model / "model.sig", keys, "--ignore-paths", str(model / ".cache"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert identified(DEPLOYMENT, model, wait_s=None, trust=keys / "signer.pub")().weights is UNSET
    assert "tallystick[model-signing]" in caplog.text


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """A root certificate, and one for signing that it vouches for."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(of: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, of)])

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, *, root: bool) -> x509.Certificate:
        usage = x509.KeyUsage(not root, False, False, False, False, root, root, False, False)
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(root_key, hashes.SHA256())
        )

    root = certificate("root", root_key, root=True)
    leaf = certificate("leaf", leaf_key, root=False)
    (folder / "root.crt").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "leaf.crt").write_bytes(leaf.public_bytes(Encoding.PEM))
    (folder / "leaf.key").write_bytes(
        leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder / "root.crt", folder / "leaf.crt"
