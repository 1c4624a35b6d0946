"""The files to deploy with: they parse, their own tools accept them, and they name what there is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ledger.service._problem_table import TABLE
from ledger.service.metrics import Metrics
from tests.cli.test_help import parse_command_line

DEPLOY = Path(__file__).parents[1] / "examples" / "deploy"
_METRIC = re.compile(r"\b(?:tallystick|process)_[a-z_]+\b")


def known_metrics() -> set[str]:
    metrics = Metrics()
    names = set()
    for family in metrics.registry.collect():
        names.add(family.name)
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {f"{family.name}{suffix}" for suffix in kinds.get(family.type, ())}
    return names


def test_the_dashboard_shows_what_is_measured() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for each in expressions for name in _METRIC.findall(each)}
    assert shown <= known_metrics()
    ours = {re.sub("_(total|bucket|sum|count)$", "", name) for name in known_metrics()}
    wanted = {name for name in ours if name.startswith("tallystick_")}
    assert wanted <= {re.sub("_(total|bucket|sum|count)$", "", name) for name in shown}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_alerts_are_about_what_is_measured() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert set(_METRIC.findall(rule["expr"])) <= known_metrics(), rule["alert"]
        assert rule["annotations"]["summary"]
    text = (DEPLOY / "prometheus-rules.yaml").read_text()
    codes = {code for group in re.findall(r'code=~?"([^"]+)"', text) for code in group.split("|")}
    assert codes <= {row[0] for row in TABLE}


def test_alerts_name_sections_of_the_runbook() -> None:
    runbook = (DEPLOY.parents[1] / "docs" / "how-to" / "operate.md").read_text()
    headings = set(re.findall(r"^## (.+)$", runbook, re.MULTILINE))
    named = set(re.findall(r'runbook, "([^"]+)"', (DEPLOY / "prometheus-rules.yaml").read_text()))
    assert named
    assert named <= headings


def commands() -> list[str]:
    """The arguments that the files give to ``tallystick``, each as a line."""
    pods = next(iter(yaml.safe_load_all((DEPLOY / "kubernetes" / "deployment.yaml").read_text())))
    spec = pods["spec"]["template"]["spec"]
    found = [each["args"] for each in (*spec["initContainers"], *spec["containers"]) if "command" not in each]
    image = (DEPLOY / "Containerfile").read_text()
    found.append(json.loads(re.findall(r"^CMD (\[.+\])$", image, re.MULTILINE)[-1]))
    lines = [shlex.join(each) for each in found]
    unit = (DEPLOY / "tallystick.service").read_text()
    lines += re.findall(r"^ExecStart=\S+/tallystick (.+)$", unit, re.MULTILINE)
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        for line in service.get("command", []):
            lines += re.findall(r"tallystick ((?:serve|init|db) [^;\n]+)", line)
    return lines


@pytest.mark.parametrize("line", commands(), ids=lambda each: each.split()[0])
def test_commands_parse(line: str) -> None:
    parse_command_line(f"tallystick {line}")


def test_the_image_installs_what_is_tested() -> None:
    """Its files exist, and its lock pins what the lock of the tests pins, file by file."""
    root = DEPLOY.parents[1]
    image = (DEPLOY / "Containerfile").read_text()
    copied = [
        name for line in re.findall(r"^COPY (?!--)(.+) \S+$", image, re.MULTILINE) for name in line.split()
    ]
    assert "requirements-server.lock" in copied
    assert [name for name in copied if not (root / name).exists()] == []
    ours, tested = (
        set(re.findall(r"^(\S+==\S+)[^\\]*\\\n(?:    --hash=(\S+))", (root / name).read_text(), re.MULTILINE))
        for name in ("requirements-server.lock", "requirements.lock")
    )
    assert {"fastapi", "psycopg-binary", "typer"} <= {pin.split("==")[0] for pin, _ in ours}
    assert ours <= tested


def test_settings_in_the_files_exist() -> None:
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())
    names = set(re.findall(r"\bTALLYSTICK_[A-Z_]+\b", text))
    known = {"TALLYSTICK_DATABASE", "TALLYSTICK_ORIGIN"}
    assert names <= known


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, check=True
    )
    kinds = [each["kind"] for each in yaml.safe_load_all(built.stdout)]
    assert sorted(kinds) == ["Deployment", "PodDisruptionBudget", "Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "tallystick.service").read_text().replace("/opt/tallystick/bin/tallystick", "/bin/true")
    path = tmp_path / "tallystick.service"
    path.write_text(unit)
    checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    ours = [line for line in checked.stderr.splitlines() if "tallystick.service" in line]
    assert (checked.returncode, ours) == (0, [])
