"""Where MLflow keeps the project's runs."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from asl_core.engine.journal import redact

IGNORED = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
"""Variables of MLflow that name an experiment for all runs: here each suite has its own."""


def ignored_settings() -> list[str]:
    """Return a line for each variable of MLflow that somebody has set and that is not used."""
    return [
        f"{name}={os.environ[name]} is not used: the runs of a suite are in the experiment "
        "asl/<suite>, whose name is `suite` in its params.yaml"
        for name in IGNORED
        if os.environ.get(name)
    ]


@dataclass(frozen=True)
class StoreAddress:
    """An MLflow tracking store.

    Attributes:
        uri: For MLflow; may hold a password, so show `shown` only.
        artifacts: Folder for files; None where a server decides.
    """

    uri: str
    artifacts: Path | None

    @classmethod
    def of(cls, root: Path) -> "StoreAddress":
        """Return MLFLOW_TRACKING_URI, or else the database of the project.

        The database is named absolutely: MLflow's own default depends on the current folder.
        """
        artifacts = root / "mlartifacts"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            return cls(f"sqlite:///{root / 'mlflow.db'}", artifacts)
        return cls(uri, None if "sql" not in uri.partition("://")[0] else artifacts)

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """File of the database, where it is one."""
        prefix = "sqlite:///"
        return Path(self.uri.removeprefix(prefix)) if self.uri.startswith(prefix) else None

    @property
    def place(self) -> Path | None:
        """Where the database is in the project, with which it moves; None where it is outside."""
        if self.database is None or self.artifacts is None:
            return None
        root = self.artifacts.parent
        return self.database.relative_to(root) if root in self.database.parents else None

    @property
    def shown(self) -> str:
        return redact(self.uri)

    @property
    def page(self) -> str:
        """Address for a browser, which asks for a password itself."""
        return re.sub(r"(?<=://)[^/\s]+@", "", self.uri).rstrip("/")

    @property
    def digest(self) -> str:
        """Tells stores apart; a changed password is no other store, nor is a project that moved."""
        shown = self.shown if self.place is None else f"project:{self.place}"
        return hashlib.sha256(shown.encode()).hexdigest()[:12]
