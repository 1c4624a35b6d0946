"""``tallystick proxy`` where it cannot serve: what is wrong is said before it listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.emit.certificates import self_signed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--certificate", "none.pem", "--key", "none.pem"), "--certificate none.pem"),
        (("--certificate", "text.pem", "--key", "text.pem"), "--certificate text.pem"),
        (("--upstream-ca", "none.pem"), "--upstream-ca none.pem"),
        (("--upstream-ca", "text.pem"), "--upstream-ca text.pem"),
        (("--certificate", "certificate.pem", "--key", "text.pem"), "--key text.pem"),
    ],
)
def test_pem_files_that_are_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALLYSTICK_SPOOL", str(tmp_path / "spool"))
    self_signed(tmp_path)
    Path("text.pem").write_text("no certificate")
    result = run("proxy", "--upstream", "https://127.0.0.1:9", "--model", "m", "--engine", "e", *options)
    assert result.exit_code == 2
    assert "cannot be used" in result.stderr
    assert named in result.stderr
    assert not (tmp_path / "spool").exists()
