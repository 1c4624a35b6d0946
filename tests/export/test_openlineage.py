"""OpenLineage events: as its own client would write them, with the figures of the records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    dataset_version_dataset,
    job_type_job,
    nominal_time_run,
    output_statistics_output_dataset,
    schema_dataset,
)
from openlineage.client.serde import Serde

from ledger.core.export_layout import day_of
from ledger.export.openlineage import write_openlineage
from ledger.export.parquet import ExportSummary
from ledger.export.query import Question
from tests.build import ORIGIN
from tests.export.conftest import Ledger

FACETS = {
    "version": dataset_version_dataset.DatasetVersionDatasetFacet,
    "jobType": job_type_job.JobTypeJobFacet,
    "nominalTime": nominal_time_run.NominalTimeRunFacet,
    "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    "schema": schema_dataset.SchemaDatasetFacet,
}


@pytest.fixture(scope="module")
def lineage(export: ExportSummary, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("lineage") / "events.ndjson"
    summary = write_openlineage(export.directory, out, Question())
    lines = out.read_text(encoding="utf-8").splitlines()
    assert summary.events == len(lines)
    return [json.loads(line) for line in lines]


def facets(given: dict[str, Any]) -> dict[str, Any]:
    """The client's facets of the same fields; our own stays as it is."""
    made = {}
    for name, fields in given.items():
        plain = {key: value for key, value in fields.items() if not key.startswith("_")}
        if name == "schema":
            plain["fields"] = [schema_dataset.SchemaDatasetFacetFields(**each) for each in plain["fields"]]
        made[name] = FACETS[name](producer=fields["_producer"], **plain) if name in FACETS else fields
    return made


def test_the_client_writes_the_same(lineage: list[dict[str, Any]]) -> None:
    for event in lineage:
        theirs = RunEvent(
            eventTime=event["eventTime"],
            producer=event["producer"],
            eventType=RunState.COMPLETE,
            run=Run(runId=event["run"]["runId"], facets=facets(event["run"]["facets"])),
            job=Job(
                namespace=event["job"]["namespace"],
                name=event["job"]["name"],
                facets=facets(event["job"]["facets"]),
            ),
            inputs=[
                InputDataset(namespace=each["namespace"], name=each["name"], facets=facets(each["facets"]))
                for each in event["inputs"]
            ],
            outputs=[
                OutputDataset(
                    namespace=each["namespace"],
                    name=each["name"],
                    facets=facets(each["facets"]),
                    outputFacets=facets(each["outputFacets"]),
                )
                for each in event["outputs"]
            ],
        )
        assert without_empty(json.loads(Serde.to_json(theirs))) == without_empty(event)


def without_empty(value: Any) -> Any:
    """``value`` without empty parts, and without what the client repeats in another place."""
    if isinstance(value, dict):
        made = {name: without_empty(each) for name, each in value.items()}
        return {name: each for name, each in made.items() if each not in ({}, [], None)}
    return [without_empty(each) for each in value] if isinstance(value, list) else value


def test_runs_count_the_records_of_their_day(lineage: list[dict[str, Any]], ledger: Ledger) -> None:
    expected = Counter((day_of(r.started_us), r.deployment) for *_, r in ledger.records)
    tokens = Counter[tuple[str, str]]()
    for *_, record in ledger.records:
        tokens[day_of(record.started_us), record.deployment] += record.usage.input_tokens
    found, found_tokens = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for event in lineage[:-1]:
        own = event["run"]["facets"]["tallystick"]
        key = event["run"]["facets"]["nominalTime"]["nominalStartTime"][:10], own["deployment"]
        found[key] += own["records"]
        found_tokens[key] += own["input_tokens"]
        assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == own["records"]
        assert own["checkpoint"]["size"] > 0
    assert found == expected
    assert found_tokens == tokens


def test_models_lead_to_the_log_and_the_log_to_the_export(
    lineage: list[dict[str, Any]], export: ExportSummary
) -> None:
    log = {"namespace": f"tallystick://{ORIGIN}", "name": "log"}
    assert all({k: e["outputs"][0][k] for k in log} == log for e in lineage[:-1])
    assert {e["inputs"][0]["name"] for e in lineage[:-1]} == {
        "models/SmolLM2-135M-Instruct",
        "models/Qwen3-32B",
    }
    assert all(e["inputs"][0]["facets"]["version"]["datasetVersion"] == "Q8_0" for e in lineage[:-1])
    last = lineage[-1]
    assert {k: last["inputs"][0][k] for k in log} == log
    assert last["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == export.records
    assert len({event["run"]["runId"] for event in lineage}) == len(lineage)


def test_the_same_export_gives_the_same_events(
    lineage: list[dict[str, Any]], export: ExportSummary, tmp_path: Path
) -> None:
    write_openlineage(export.directory, tmp_path / "again", Question())
    again = (tmp_path / "again").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in again] == lineage
