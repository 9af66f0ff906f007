"""MLflow's server as `asl-pipe ui` starts it: its pages open on training runs.

MLflow has two faces, for language models and for training, and takes the first where a browser has
not chosen: an experiment then opens on an empty overview, whatever its tag `mlflow.experimentKind`
says. The choice lies in the browser's own store, so the first page puts it there, and leaves alone
what somebody has chosen. An "app" of MLflow is an entry point of the group `mlflow.app`.
"""

import json
from pathlib import Path

from fastapi import FastAPI
from flask import Response
from mlflow.server import app as flask_app
from mlflow.server.fastapi_app import create_fastapi_app

CHOICES = {
    "mlflow.workflowType_v1": json.dumps("machine_learning"),
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": json.dumps(True),
}
"""Key in the browser's store -> what it holds unless it holds something: the face, and that the
assistant, a quarter of the page, need not be opened."""

SCRIPT = (
    f"<script>for (const [key, value] of Object.entries({json.dumps(CHOICES)})) "
    "if (localStorage.getItem(key) === null) localStorage.setItem(key, value);</script>"
)


def create_app() -> FastAPI:
    """Return MLflow's server with our first page in the place of its own."""
    flask_app.view_functions["serve"] = _first_page
    return create_fastapi_app()


def _first_page() -> Response:
    """Return MLflow's page with the script that chooses, before its own; nobody keeps a copy."""
    text = Path(flask_app.static_folder or "", "index.html").read_text(encoding="utf-8")
    page = text.replace("<head>", f"<head>{SCRIPT}", 1)
    return Response(page, mimetype="text/html", headers={"Cache-Control": "no-store"})
