"""The fingerprint is the key under which DVC itself files a result."""

from pathlib import Path

import pytest

from pipeline.adapters.dvc_cache import DvcCache
from pipeline.errors import UserError

DVC_YAML = """
stages:
  make:
    foreach: ${things}
    do:
      cmd: mkdir -p out && cp source.txt out/${key}.txt && echo '{}' > out/${key}.json
      params: [scale, "things.${key}"]
      deps: [source.txt, code]
      outs: ["out/${key}.txt"]
      metrics: [{"out/${key}.json": {cache: false}}]
"""
PARAMS = "scale: reduced\nthings: {a: {epochs: 2, lr: 1.0e-3}, b: {epochs: 3}}\n"


@pytest.fixture
def project(dvc_project: Path) -> Path:
    (dvc_project / "dvc.yaml").write_text(DVC_YAML)
    (dvc_project / "params.yaml").write_text(PARAMS)
    (dvc_project / "source.txt").write_text("pixels")
    (dvc_project / "code").mkdir()
    (dvc_project / "code/method.py").write_text("x = 1\n")
    suite = dvc_project / "suites/other"
    suite.mkdir(parents=True)
    (suite / "params.yaml").write_text(PARAMS)
    (suite / "source.txt").write_text("pixels")
    (suite / "dvc.yaml").symlink_to("../../dvc.yaml")
    (suite / "code").symlink_to("../../code")
    return dvc_project


def test_the_fingerprint_names_the_folder_of_the_run_cache(project: Path, call) -> None:
    before = DvcCache().identify(project, "make@a")
    done = call("dvc", "repro", "make@a", cwd=project)
    assert done.returncode == 0, done.stderr
    entries = [path.name for path in (project / ".dvc/cache/runs").glob("??/*")]
    assert entries == [before.fingerprint]
    assert DvcCache().identify(project, "make@a") == before
    assert set(before.inputs) == {"source.txt", "code"}


def test_the_fingerprint_follows_params_inputs_and_code_and_nothing_else(project: Path) -> None:
    cache = DvcCache()
    before = cache.identify(project, "make@a").fingerprint
    (project / "params.yaml").write_text(PARAMS.replace("epochs: 3", "epochs: 4") + "# note\n")
    assert cache.identify(project, "make@a").fingerprint == before
    for path, text in (
        ("params.yaml", PARAMS.replace("1.0e-3", "2.0e-3")),
        ("source.txt", "other pixels"),
        ("code/method.py", "x = 2\n"),
    ):
        kept = (project / path).read_text()
        (project / path).write_text(text)
        assert cache.identify(project, "make@a").fingerprint != before, path
        (project / path).write_text(PARAMS if path == "params.yaml" else kept)
    assert cache.identify(project, "make@a").fingerprint == before


def test_two_suites_give_one_run_the_same_fingerprint(project: Path) -> None:
    cache = DvcCache()
    root = cache.identify(project, "make@a").fingerprint
    assert cache.identify(project / "suites/other", "make@a").fingerprint == root


@pytest.mark.parametrize("name", ["make@c", "mak@a"])
def test_a_stage_that_dvc_does_not_have_is_a_user_error(project: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        DvcCache().identify(project, name)


def test_an_input_that_is_missing_is_a_user_error(project: Path) -> None:
    (project / "source.txt").unlink()
    with pytest.raises(UserError, match=r"source\.txt"):
        DvcCache().identify(project, "make@a")
