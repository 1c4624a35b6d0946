"""What ``make security`` runs finds what it looks for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.security.known_weaknesses import affects, pins, weaknesses
from tests.security.secrets_scan import scan

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {
    "key.pem": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIB\n",
    "aws.py": 'key = "AKIA' + 'IOSFODNN7EXAMPLQ"\n',
    "ours.txt": "token: tsk_0123456789ab_" + "A" * 43 + "\n",
    "invite.txt": "tsi_0123456789ab_" + "b" * 43 + "\n",
    "url.py": 'url = "https://joe:' + 'correcthorse@db.example.net/"\n',
}


def test_secrets_are_found(tmp_path: Path) -> None:
    for name, content in PLANTED.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "clean.py").write_text("answer = 42\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert {place.partition(":")[0] for place in scan(tmp_path)} == set(PLANTED)


def test_weaknesses_are_found(tmp_path: Path) -> None:
    advisory = {
        "id": "PYSEC-0",
        "aliases": ["CVE-0"],
        "affected": [
            {
                "package": {"name": "Some_Package", "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}, {"fixed": "1.2"}]}],
            }
        ],
    }
    (tmp_path / "some-package").mkdir()
    (tmp_path / "some-package" / "PYSEC-0.yaml").write_text(yaml.safe_dump(advisory))
    lock = "some.package==1.1 \\\n    --hash=sha256:00\nother==1.1 ; python_version < '4'\n"
    assert pins(lock) == {"some-package": "1.1", "other": "1.1"}
    assert weaknesses(pins(lock), tmp_path) == ["some-package 1.1: PYSEC-0 CVE-0"]
    for version, known in (("0.9", False), ("1.0", True), ("1.2", False), ("1.10", False)):
        assert affects(advisory, "some-package", version) == known


def test_the_lock_can_be_looked_up() -> None:
    found = pins((ROOT / "requirements.lock").read_text())
    assert len(found) > 100
    assert {"cryptography", "fastapi", "pyjwt"} <= found.keys()
