"""Where evaluations of one encoder keep the frozen features that they share."""

import hashlib
from pathlib import Path

from pipeline.jobs.folder import JobFolder
from pipeline.results.closure import code_text
from pipeline.results.code import read_code
from pipeline.stages.table import STAGES

COMPUTED_BY = "asl_core.transfer.feature_files"


def shared_features(job: JobFolder, stage: str, code_root: Path) -> Path | None:
    """Return the folder for features that the present code computes; None where none are read.

    With other code there is another folder, so that nothing stale is read.
    """
    if not STAGES[stage].reads_features:
        return None
    text = code_text(read_code(code_root).files, COMPUTED_BY)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return job.features / digest
