"""What a run cost beside what sacct says: a real Slurm with accounts, a job preempted once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab
from two_nodes import TwoNodes

from pipeline.jobs.verdict import Verdict

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_costs_are_those_of_sacct(stub_project: Path, accounting: TwoNodes) -> None:
    lab = Lab(stub_project, accounting)
    lab.stub(steps=40, step_s=0.2)
    lab.ask(account="lab")
    lab.ask("pretrain", nodes=2, cpus=2, memory="500M")
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 7)
    accounting.call(
        "sbatch", "--parsable", "-A", "lab", "-p", "high", "-N2", "-c2", "--output=/dev/null",
        "--wrap", "srun sleep 1",
    )  # fmt: skip
    lab.wait(lambda: lab.state("pretrain@asl").restarts == 1, "pretrain@asl")
    lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    columns = "State,ElapsedRaw,CPUTimeRAW,Eligible,Start,End"

    def said() -> list[list[str]]:
        command = ["sacct", "-j", job_id, "-X", "-D", "-n", "-P", f"--format={columns}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split("|") for line in done.stdout.splitlines()]

    # records come a moment later
    lab.wait(lambda: [row[0] for row in said()][-1:] == ["COMPLETED"], "pretrain@asl")
    text = lab.say("asl-pipe", "cost")
    content = json.loads(lab.say("asl-pipe", "cost", "--format", "json"))
    sys.stdout.write(f"{text}\n{said()}\n{json.dumps(content)}\n")
    (row,) = (row for row in content["stages"] if row["stage"] == "pretrain")
    assert row["starts"] == 2
    assert row["from"] == "accounting 2"
    assert row["hours"] * 3600 == pytest.approx(sum(int(line[1]) for line in said()))
    assert row["cpu_hours"] * 3600 == pytest.approx(sum(int(line[2]) for line in said()))
    (run,) = (run for run in content["runs"] if run["run"] == "pretrain@asl")
    one, two = run["starts"]
    assert two["began"] - two["ready"] >= 0
    assert one["memory"] == 2 * 500 * 2**20
    # steps after the last checkpoint of the first start were done again, or none at all
    assert 0 <= one["lost_s"] < one["ended"] - one["began"]
    assert re.search(r"^pretrain .*accounting 2", text, re.MULTILINE)
