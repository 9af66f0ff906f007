"""Descriptions that MLflow shows above experiments and runs, in Markdown."""

from pipeline.tracking.mlflow.link import charts_fragment, results_fragment, runs_fragment
from pipeline.tracking.tracked import TrackedRun


def experiment_note(suite: str, experiment_id: str) -> str:
    """Return what the runs of a suite are and how to compare them."""
    charts = charts_fragment(experiment_id)
    results, everything = results_fragment(experiment_id), runs_fragment(experiment_id)
    # MLflow shows the first line only until somebody unfolds the rest.
    return f"""Suite **{suite}**: [results side by side]({results}), \
[charts of all experiments]({charts}), [all runs]({everything}).

- One run per experiment (tag `asl.stage` = `experiment`), named like its entry in `params.yaml`:
  its results (`lp_acc1`, ...) are the experiment's row in the suite's table (`reports/index.html`),
  its `pretrain/*` metrics the curves of its pre-training. When it is trained again, it gets a new
  run; the one with the tag `asl.current` = `true` is what `dvc.lock` names, or what runs now.
- Below it one run per stage, `detect/asl`, with its own curves, pictures, dataset and system
  metrics. `asl.fingerprint` is DVC's key of the stage: the same key, the same result.
- Each encoder is a [model](/#/experiments/{experiment_id}/models) with the results of all stages
  that were made from it, and a version of [asl-{suite}](/#/models/asl-{suite}); alias `best`, of
  those that are current: `mlflow.pyfunc.load_model("models:/asl-{suite}@best").predict(images)`.
- To compare: select rows, *Compare*. Other weights stay with DVC; a run's `weights.txt` says where.
"""


def parent_note(run: TrackedRun) -> str:
    """Return what an experiment's run holds."""
    return (
        f"Experiment **{run.key}** of suite *{run.suite}* (`experiments.{run.key}` in "
        f"`params.yaml`): its results are the row of this experiment in the suite's table, "
        f"`reports/index.html`. Scale: {run.tags.get('asl.scale', 'not said')}. "
        "One run per stage below."
    )


def run_note(run: TrackedRun) -> str:
    """Return what made a stage's run, and why it ended if it did not succeed."""
    note = (
        f"Stage `{run.stage}@{run.key}` of suite *{run.suite}*; in its folder "
        f"`dvc repro {run.stage}@{run.key}` makes it. Fingerprint `{run.fingerprint}`."
    )
    return f"{note}\n\n{run.status}: {run.message}" if run.message else note
