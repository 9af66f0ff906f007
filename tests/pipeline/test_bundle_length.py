"""How long pre-trainings may be in a given time, and a bundle at that length."""

import pytest

from pipeline.bundles.length import Pace, longest, trainings, with_epochs
from pipeline.bundles.manifest import Manifest, RunPlan
from pipeline.errors import UserError
from pipeline.jobs.folder import PROVISIONAL
from pipeline.results.documents import recipe_id


def pace(name: str, epoch_s: float, around_s: float = 10.0) -> Pace:
    return Pace(name=f"pretrain@{name}", epoch_s=epoch_s, around_s=around_s)


def test_all_rows_together_fit_and_one_epoch_more_does_not() -> None:
    paces = [pace("mae", 1.0), pace("aee", 1.5), pace("dle", 2.0, 12.0)]
    assert longest(paces, 420) == 86  # 32 s around; 4.5 s an epoch of all: 387 s
    assert longest(paces, 32 + 4.5 * 7) == 7
    assert longest(paces, 32 + 4.5 * 7 - 0.01) == 6


def test_where_no_epoch_fits_it_is_said_what_is_lacking() -> None:
    with pytest.raises(UserError, match=r"36 s are left.* take 32 s.* takes 4\.5 s"):
        longest([pace("mae", 1.0), pace("aee", 1.5), pace("dle", 2.0, 12.0)], 36)


def plan(stage: str, key: str, recipe: dict[str, object], **maker: str) -> RunPlan:
    section = "experiments" if stage == "pretrain" else stage
    deps: list[dict[str, str]] = [{"path": "data/x", "md5": "d0"}]
    deps += [{"path": "runs/encoder/" + key}] if maker else []
    document = {
        "cmd": f"asl-pipe run {stage} {key}", "deps": deps,
        "params": {"params.yaml": {"scale": "reduced", f"{section}.{key}": dict(recipe)}},
        "outs": [{"path": f"runs/{stage}/{key}"}],
    }  # fmt: skip
    upstream = {"data/x": "r0"} | ({f"runs/encoder/{key}": "r1"} if maker else {})
    name = PROVISIONAL + "packed-" + key
    return RunPlan(
        name=f"{stage}@{key}", stage=stage, key=key, fingerprint=name, document=document,
        recipe=recipe, place={}, resources={}, inputs={}, upstream=upstream,
        makers={f"runs/encoder/{key}": maker["by"]} if maker else {},
        digests={"data/x": "d0"} | ({f"runs/encoder/{key}": f"{name}.0"} if maker else {}),
        code="", packages=(),
    )  # fmt: skip


@pytest.fixture
def manifest() -> Manifest:
    runs = (
        plan("pretrain", "untrained", {"seed": 0}),
        plan("pretrain", "mae", {"epochs": 40, "lr": 0.1}),
        plan("linprobe", "untrained", {"epochs": 20}, by="pretrain@untrained"),
        plan("linprobe", "mae", {"epochs": 20}, by="pretrain@mae"),
    )
    return Manifest(suite="s", folder="s", scale="reduced", tags={}, runs=runs, files={})


def test_a_length_changes_pre_trainings_and_what_reads_them(manifest: Manifest) -> None:
    assert [run.name for run in trainings(manifest.runs)] == ["pretrain@mae"]
    floor, mae, floor_probe, probe = with_epochs(manifest, 7).runs
    assert (floor, floor_probe) == (manifest.runs[0], manifest.runs[2])
    assert mae.recipe == {"epochs": 7, "lr": 0.1}
    assert mae.document["params"]["params.yaml"]["experiments.mae"] == {"epochs": 7, "lr": 0.1}
    assert manifest.runs[1].document["params"]["params.yaml"]["experiments.mae"]["epochs"] == 40
    assert mae.fingerprint == PROVISIONAL + recipe_id(mae.document, {"data/x": "r0"})
    assert probe.recipe == {"epochs": 20}  # its own length is another thing
    read = {"data/x": "r0", "runs/encoder/mae": mae.fingerprint.removeprefix(PROVISIONAL)}
    assert probe.fingerprint == PROVISIONAL + recipe_id(probe.document, read)
    assert probe.digests == {"data/x": "d0", "runs/encoder/mae": f"{probe.fingerprint}.0"}
    names = [run.fingerprint for run in with_epochs(manifest, 8).runs]
    assert names[1] != mae.fingerprint
    assert names[3] != probe.fingerprint
