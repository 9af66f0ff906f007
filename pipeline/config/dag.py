"""dvc.yaml, written out from the table of stages.

Every suite has the same: commands, parameters and paths are alike, so that a run which two suites
share has one key in DVC's run-cache and is made once.
"""

import re
from collections.abc import Sequence

from pipeline.stages.table import (
    CODE_FOLDER,
    CODE_STAGE,
    EVALUATIONS,
    MEASURED,
    REPORT,
    RUN_BY_JOBS,
    Stage,
)

_HEAD = """\
# The DAG, the same in every suite; written by `asl-pipe expand` from the table of stages. What
# each stage's code means stands in one small file under code/.
"""


def dag_text(code: Sequence[str]) -> str:
    """Return the text of dvc.yaml.

    Args:
        code: Folders of the packages; none where they are installed and not part of the project:
            DVC cannot watch them then, and the stage `code` looks at them each time.
    """
    sections = ", ".join(f"{stage.section}: {{}}" for stage in EVALUATIONS)
    blocks = [
        f"{_HEAD}vars:\n  - {{{sections}}}  # params.yaml need not write them\nstages:",
        _code_block(code),
        *(_block(stage) for stage in RUN_BY_JOBS),
        _report_block(),
    ]
    return "\n\n".join(blocks).replace("stages:\n\n", "stages:\n") + "\n"


def _code_block(code: Sequence[str]) -> str:
    watched = f"deps: [{', '.join(code)}]" if code else "always_changed: true"
    return (
        f"  {CODE_STAGE}:\n"
        f"    cmd: asl-pipe run {CODE_STAGE}\n"
        f"    {watched}\n"
        f"    outs: [{CODE_FOLDER}]"
    )


def _block(stage: Stage) -> str:
    variant = "" if stage.variant is None else f"-${{item.{stage.variant}}}"
    deps = [_templated(path) for path in stage.inputs.values()]
    deps.append(f"{CODE_FOLDER}/{stage.name}{variant}.txt")
    scale = "scale, " if stage in MEASURED else ""
    lines = [
        f"  {stage.name}:",
        f"    foreach: ${{{stage.section}}}",
        "    do:",
        f"      cmd: asl-pipe run {stage.name} ${{key}}",
        f'      params: [{scale}"{stage.section}.${{key}}"]',
        f"      deps: {_flow(deps)}",
        f"      outs: {_flow([_templated(path) for path in stage.outputs.values()])}",
    ]
    metrics = stage.metrics_path("${key}")
    if metrics is not None:
        lines.append(f'      metrics: [{{"{metrics}": {{cache: false}}}}]')
    return "\n".join(lines)


def _report_block() -> str:
    return (
        f"  {REPORT.name}:\n"
        f"    cmd: asl-pipe run {REPORT.name}\n"
        "    params: [{params.yaml: null}]  # all of it\n"
        f"    deps: [runs, {CODE_FOLDER}/{REPORT.name}.txt]  # runs of all others: it comes last\n"
        f"    outs: [{', '.join(REPORT.outputs.values())}]"
    )


def _templated(path: str) -> str:
    """Return a path of the table with DVC's variables."""
    return re.sub(r"\{(\w+)\}", lambda m: "${key}" if m[1] == "key" else f"${{item.{m[1]}}}", path)


def _flow(paths: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{path}"' for path in paths) + "]"
