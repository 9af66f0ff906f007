"""A client in a process of its own: `submit_client.py ROOT CLUSTER [STAGE]`.

With $DIE_AT it kills itself without a word before the so-manieth thing that it writes, renames or
asks of the scheduler.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_scheduler import FakeScheduler

from pipeline.jobs.verdict import Patience
from pipeline.project import find_project
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.git import Git
from pipeline.submission.plan import SubmissionServices, make_plan
from pipeline.submission.selection import Wanted
from pipeline.submission.submit import submit

count = 0


def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which may be the last thing that is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        global count
        count += 1
        if count == int(os.environ.get("DIE_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


for owner, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "symlink"),
                    (os, "unlink"), (FakeScheduler, "submit"), (FakeScheduler, "queue"),
                    (FakeScheduler, "_write")):  # fmt: skip
    setattr(owner, name, mortal(getattr(owner, name)))

root, cluster = map(Path, sys.argv[1:3])
stage = sys.argv[3] if len(sys.argv) > 3 else None
services = SubmissionServices(
    DvcCache(), FakeScheduler(cluster), Git(),
    Patience(submitted_s=float(os.environ.get("PATIENCE", "1.5"))),
)  # fmt: skip
done = submit(make_plan(find_project(root), Wanted(stage), services), services)
sys.stdout.write(json.dumps([[each.name, each.outcome, each.job_id] for each in done]) + "\n")
sys.stdout.write(f"{count}\n")
