"""A row of the paper that two experiments would fill."""

from pathlib import Path

import pytest

from pipeline import cli
from pipeline.config.params import load_params
from pipeline.project import suite_folders
from pipeline.tables.collect import collect
from pipeline.tables.layout import contested_rows
from pipeline.tables.paper import load_paper

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", suite_folders(ROOT))
def test_no_suite_fills_a_row_twice(name: str) -> None:
    folder = suite_folders(ROOT)[name]
    suite = collect(folder, load_params(folder / "params.yaml"))
    assert contested_rows(suite, load_paper()) == []


def test_two_experiments_for_a_row_are_refused_and_two_seeds_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    text = (ROOT / "suites/table5/params.yaml").read_text()
    mae = "  mae:\n    method: mae\n    dataset: imagenet\n    model: vit-b\n    epochs: 1600\n"
    assert mae in text
    (tmp_path / "params.yaml").write_text(
        text.replace(mae, mae + mae.replace("  mae:", "  mae-seed1:", 1) + "    seed: 1\n")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASL_DATA", str(tmp_path))
    suite = collect(tmp_path, load_params(tmp_path / "params.yaml"))
    assert contested_rows(suite, load_paper()) == []
    (tmp_path / "params.yaml").write_text(
        text.replace(mae, mae + mae.replace("  mae:", "  again:", 1) + "    batch_size: 2048\n")
    )
    suite = collect(tmp_path, load_params(tmp_path / "params.yaml"))
    line = "Table 5, row MAE: experiments mae and again both fill it; give one of them a `row`"
    assert [found.startswith(line) for found in contested_rows(suite, load_paper())] == [True]
    assert cli.run_command(["validate"]) == 2
    assert line in capsys.readouterr().err
