"""A real Slurm for tests: started once in a session, emptied after each test."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import install
from small_jobs import Jobs
from two_nodes import ACCOUNTING_PACKAGES, PACKAGES, TwoNodes, missing_programs

from pipeline.schedulers.slurm.scheduler import SlurmScheduler


def start_cluster(*, accounting: bool) -> TwoNodes:
    """Start a cluster in a folder of its own; with CI=true it is installed first if need be."""
    missing = missing_programs(accounting=accounting)
    if missing and os.environ.get("CI") == "true":
        install(*PACKAGES, *ACCOUNTING_PACKAGES)
    elif missing:
        packages = " ".join((*PACKAGES, *(ACCOUNTING_PACKAGES if accounting else ())))
        pytest.skip(f"no {missing[0]}; apt-get install --no-install-recommends {packages}")
    # not under pytest's own folder: the path of munge's socket must be short
    cluster = TwoNodes(Path(tempfile.mkdtemp(prefix="asl-slurm-")), tied=True)
    cluster.folder.chmod(0o755)
    try:
        cluster.start(accounting=accounting)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def end_cluster(cluster: TwoNodes) -> None:
    cluster.stop()
    shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster_without_accounting() -> Iterator[TwoNodes]:
    """Two nodes, no sacct: what works here works everywhere."""
    cluster = start_cluster(accounting=False)
    yield cluster
    end_cluster(cluster)


@pytest.fixture(scope="session")
def cluster_with_accounting() -> Iterator[TwoNodes]:
    """Two nodes whose sacct answers."""
    cluster = start_cluster(accounting=True)
    yield cluster
    end_cluster(cluster)


def in_use(cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    """Let the commands of one test find the cluster, and leave it empty."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    # the same lines are measured in tests/pipeline: here it would only slow hundreds of processes
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    yield cluster
    cluster.clear()


@pytest.fixture
def cluster(
    cluster_without_accounting: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TwoNodes]:
    """The cluster without accounting; SLURM_CONF is set."""
    yield from in_use(cluster_without_accounting, monkeypatch)


@pytest.fixture
def accounting(
    cluster_with_accounting: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TwoNodes]:
    """The cluster with accounting; SLURM_CONF is set."""
    yield from in_use(cluster_with_accounting, monkeypatch)


@pytest.fixture
def jobs(cluster: TwoNodes, tmp_path: Path) -> Jobs:
    """Jobs on the cluster without accounting."""
    return Jobs(tmp_path, SlurmScheduler(tmp_path / "slurm"))
