"""What MLflow's pages show of us: on which face they open, titles, refusals in words."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from pipeline.tracking.mlflow.address import StoreAddress, ignored_settings
from pipeline.tracking.mlflow.charts import TITLES, comparison_view
from pipeline.tracking.mlflow.client import CREDENTIALS, refusals
from pipeline.tracking.mlflow.link import results_fragment
from pipeline.tracking.port import StoreRefusedError

SERVER = StoreAddress("http://host:5000", None)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


FIRST_PAGE = """
import json
from mlflow.server import app
from pipeline.tracking.mlflow.app import CHOICES, SCRIPT, create_app

create_app()
answer = app.test_client().get("/")
print(json.dumps([answer.status_code, answer.headers["Cache-Control"], CHOICES, SCRIPT,
                  answer.get_data(as_text=True)]))
"""


def test_the_first_page_chooses_training_before_mlflows_own_script(tmp_path: Path) -> None:
    # MLflow's server warns of its own libraries when it is imported
    command = [sys.executable, "-W", "ignore", "-c", FIRST_PAGE]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    status, caching, choices, script, page = json.loads(done.stdout.splitlines()[-1])
    assert (status, caching) == (200, "no-store")  # a page of another version is not kept
    assert 0 < page.index(script) < page.index("<script defer")
    # and MLflow's pages read what it writes
    folder = Path(mlflow.__file__).parent / "server/js/build/static/js"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js"))
    for name in choices:
        key, _, version = name.rpartition("_v")
        assert re.search(rf'key:"{re.escape(key)}",version:{version},', text)
    assert choices["mlflow.workflowType_v1"] == '"machine_learning"'
    assert '"machine_learning"' in text


def test_side_by_side_begins_with_the_results_of_all_tasks() -> None:
    state = json.loads(json.loads(comparison_view("demo", 0))["state"])
    columns = state["selectedColumns"]
    assert columns[:3] == ["params.`method`", "metrics.`lp_acc1`", "metrics.`knn_acc1`"]
    assert {"metrics.`ft_acc1`", "metrics.`ap_box`", "metrics.`miou`"} <= set(columns)
    assert "compareRunsMode" not in results_fragment("1")  # the table, not the charts


def test_a_section_of_its_own_says_what_each_result_is() -> None:
    state = json.loads(json.loads(comparison_view("demo", 0))["state"])
    names = {each["uuid"]: each["name"] for each in state["compareRunSections"]}
    bars = [card for card in state["compareRunCharts"] if card["type"] == "BAR"]
    assert {card["metricKey"]: names[card["metricSectionId"]] for card in bars} == {
        card["metricKey"]: TITLES[card["metricKey"]] for card in bars
    }
    assert names["section-0"] == "Linear probe, top-1 [%]"


def said(error: Exception) -> str:
    with pytest.raises(StoreRefusedError) as raised, refusals(SERVER):
        raise error
    return str(raised.value)


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Client Error", response=response)


REFUSED = [
    MlflowException("API request to endpoint /api/x failed with error code 401 != 200. Response "
                    "body: 'You are not authenticated.'"),
    RestException({"error_code": "UNAUTHENTICATED", "message": "who are you"}),
    http_error(401),
]  # fmt: skip


@pytest.mark.parametrize("error", REFUSED, ids=["text", "json", "artifact"])
def test_a_401_names_the_variables_to_set(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or " in said(error)
    assert "MLFLOW_TRACKING_TOKEN" in said(error)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter22")
    assert "does not accept MLFLOW_TRACKING_TOKEN (401)" in said(error)
    assert "hunter22" not in said(error)


def test_a_403_says_that_it_is_the_user_and_other_errors_stay_as_they_are() -> None:
    assert "refuses this user (403)" in said(http_error(403))
    assert "no space left" in said(OSError("no space left"))


def test_an_experiment_that_the_environment_names_is_said_not_to_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert ignored_settings() == []
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    (line,) = ignored_settings()
    assert line.startswith("MLFLOW_EXPERIMENT_NAME=mine is not used")
    assert "asl/<suite>" in line
