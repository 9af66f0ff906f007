"""What it cost: figures of starts from accounting, records and journals, and their sums."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asl_core.recipes.optimisation import Resources
from pipeline.cli import run_command
from pipeline.config.cluster import read_cluster
from pipeline.config.cost_factors import CostFactors
from pipeline.errors import UserError
from pipeline.execution.metering import Meter
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Job, Terms, write_attempt, write_job
from pipeline.jobs.kept_costs import keep_cost, kept_costs
from pipeline.jobs.starts import Cause, Start, write_start
from pipeline.jobs.state import RunStatus
from pipeline.jobs.usage import RunCost, Usage, cost_in_journal, sums_of
from pipeline.schedulers.port import Account
from pipeline.schedulers.slurm.accounting import FIELDS, read_accounts
from pipeline.submission import garbage
from pipeline.submission.costs import keep_costs_of, suite_costs
from pipeline.submission.garbage import Garbage
from pipeline.tables.html import page
from pipeline.tables.paper import load_paper
from pipeline.tables.spending import Amount, spending
from pipeline.tables.spending_formats import notes, table

HOUR = 3600.0

SACCT = """\
5|COMPLETED|1000|1060|1180|00:02:00|04:00.500|||cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=8G,node=2
5.batch|COMPLETED|1060|1060|1180|00:02:00|00:00.500|12000K|1|cpu=2,mem=4G,node=1
5.0|COMPLETED|1060|1060|1180|00:02:00|04:00|1.5G|2|cpu=4,mem=8G,node=2
6_3|PREEMPTED|2000|2100|2700|00:10:00|00:00:00|||cpu=1,mem=512M,node=1
6_3.batch|CANCELLED|2100|2100|2700|00:10:00|00:00:00||1|cpu=1,mem=512M,node=1
6_3|COMPLETED|2700|2800|89200|1-00:00:00|12:34:56|||cpu=1,gres/gpu:a100=1,mem=512M,node=1
6_3.batch|COMPLETED|2800|2800|89200|1-00:00:00|12:34:56|0|1|cpu=1,mem=512M,node=1
7|PENDING|Unknown|Unknown|Unknown|00:00:00|00:00:00|||
8|CANCELLED by 0|1000|None|1200|00:00:00|00:00:00|||
9|RUNNING|1000|1100|Unknown|00:05:00|00:00:00|||cpu=2,mem=1G,node=1
9.0|RUNNING|1100|1100|Unknown|00:05:00|00:00:00|||cpu=2,mem=1G,node=1
a line of something else
"""


def test_sacct_is_read_start_by_start() -> None:
    five, first, second, running = read_accounts(SACCT)
    assert len(FIELDS) == SACCT.splitlines()[0].count("|") + 1
    assert five == Account(
        job_id="5", state="COMPLETED", ready=1000, began=1060, ended=1180, gpus=2, cpus=4,
        cpu_s=240.5, memory=8 * 2**30, memory_peak=2 * 1.5 * 2**30,
    )  # fmt: skip
    assert (first.job_id, first.state, first.ended, first.gpus) == ("6_3", "PREEMPTED", 2700, None)
    assert (first.cpu_s, first.memory_peak) == (None, None)  # killed: nobody knows, not 0
    assert (second.gpus, second.ended, second.cpu_s) == (1, 89200, 12 * HOUR + 34 * 60 + 56)
    assert (running.job_id, running.ended) == ("9", None)


def lines(folder: Path, number: int, *records: tuple[float, str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"attempt-{number:03d}.jsonl").open("w") as file:
        for seconds, kind, body in records:
            record = {"v": 1, "kind": kind, "t": round(seconds * 1000), **body}
            file.write(json.dumps(record) + "\n")


def tags(**more: str) -> dict[str, Any]:
    named = {"stage": "pretrain", "key": "mae", "suite": "tiny", "fingerprint": "f" * 64}
    return {"values": {**named, **{k.replace("__", "."): v for k, v in more.items()}}}


def sample(second: float, **values: float) -> tuple[float, str, dict[str, Any]]:
    named = {f"system/n1/{name}": value for name, value in values.items()}
    return second, "metrics", {"step": int(second), "values": named}


OPEN = {"pid": 1, "host": "elsewhere"}


def preempted(folder: Path, last: str = "SUCCEEDED", step: int = 20, **more: str) -> Path:
    """Leave a journal of 100 s, of which a checkpoint at step 20 kept 60, and of 40 s more."""
    given = {"allotted__gpus": "1", "allotted__cpus": "4", "allotted__gpu_indices": "1", **more}
    lines(
        folder, 0, (1000, "open", OPEN), (1000, "tags", tags(**given)),
        (1000, "resume", {"step": 0}),
        sample(1010, gpu_0_power_usage_watts=999, gpu_1_power_usage_watts=100,
               gpu_0_utilization_percentage=0, gpu_1_utilization_percentage=50,
               process_peak_resident_megabytes=100),
        (1030, "metrics", {"step": 10, "values": {"pretrain/loss": 1.0}}),
        (1060, "metrics", {"step": 20, "values": {"pretrain/loss": 1.0}}),
        (1090, "metrics", {"step": 30, "values": {"pretrain/loss": 1.0}}),
        sample(1100, gpu_1_power_usage_watts=300, gpu_1_utilization_percentage=70,
               process_peak_resident_megabytes=200),
    )  # fmt: skip
    lines(
        folder, 1, (2000, "open", OPEN), (2000, "tags", tags(**given)),
        (2005, "resume", {"step": step}),
        sample(2010, gpu_1_utilization_percentage=100, gpu_1_power_usage_watts=400),
        (2040, "tags", {"values": {"used.cpu_seconds": "80.0", "used.gpu_joules": "12345.0"}}),
        (2040, "end", {"status": last, "message": ""}),
    )  # fmt: skip
    return folder


def test_a_journal_tells_its_own_gpus_energy_and_what_a_resume_lost(tmp_path: Path) -> None:
    found = cost_in_journal(preempted(tmp_path / "journal"))
    assert found is not None
    assert found.status is RunStatus.SUCCEEDED
    one, two = found.starts
    assert (one.seconds, two.seconds, one.gpus, one.cpus) == (100, 40, 1, 4)
    assert (one.lost_s, two.lost_s) == (40, 0)
    assert (one.cpu_s, two.cpu_s) == (None, 80)
    # 10 s at 100 W before the first sample, 90 s at 200 W on average; the other GPU is not ours
    assert one.joules == pytest.approx(10 * 100 + 90 * 200)
    assert two.joules == 12345  # counted, and so not what the one sample says
    assert (one.gpu_use, two.gpu_use) == (60, 100)
    assert one.memory_peak == 200e6
    sums = sums_of(found.starts)
    assert sums["cost/gpu_hours"] == pytest.approx(140 / HOUR)
    assert sums["cost/lost_hours"] == pytest.approx(40 / HOUR)
    assert sums["cost/gpu_kwh"] == pytest.approx((19000 + 12345) / 3.6e6)


@pytest.mark.parametrize(("step", "lost"), [(0, 100), (10, 70), (30, 10)])
def test_what_was_done_after_the_checkpoint_is_lost(step: int, lost: float, tmp_path: Path) -> None:
    found = cost_in_journal(preempted(tmp_path, step=step))
    assert found is not None
    assert found.starts[0].lost_s == lost


def test_all_of_a_failed_run_is_lost(tmp_path: Path) -> None:
    found = cost_in_journal(preempted(tmp_path, last="FAILED"))
    assert found is not None
    assert [start.lost_s for start in found.starts] == [100, 40]


def test_an_old_journal_leaves_open_what_it_does_not_say(tmp_path: Path) -> None:
    lines(
        tmp_path, 0, (0, "open", OPEN), (0, "tags", tags(gpu__uuids="A,B", device="cuda")),
        (10, "end", {"status": "SUCCEEDED", "message": ""}),
    )  # fmt: skip
    found = cost_in_journal(tmp_path)
    assert found is not None
    start = found.starts[0]
    assert (start.gpus, start.cpus, start.cpu_s, start.joules, start.gpu_use) == (
        2, None, None, None, None,
    )  # fmt: skip
    assert sums_of(found.starts).keys() == {"cost/hours", "cost/gpu_hours", "cost/lost_hours"}


def cost_of(*starts: Usage, stage: str = "pretrain", key: str = "mae") -> RunCost:
    return RunCost(
        stage=stage, key=key, suite="tiny", fingerprint=f"{stage}-{key}",
        status=RunStatus.SUCCEEDED, starts=starts,
    )  # fmt: skip


def hours(count: float, **fields: Any) -> Usage:
    return Usage(began=0, ended=count * HOUR, **fields)


def test_sums_prices_and_what_is_not_known() -> None:
    factors = CostFactors(per_gpu_hour=2.0, per_cpu_hour=0.5, grams_co2_per_kwh=400)
    known = hours(2, gpus=2, cpus=4, cpu_s=4 * HOUR, joules=3.6e6, gpu_use=50, lost_s=HOUR,
                  ready=-HOUR, job_id="1", memory=100, memory_peak=50)  # fmt: skip
    dark = hours(1, gpus=1, cpus=2, gpu_use=100, job_id="2", memory=100, memory_peak=80)
    here = hours(1, gpus=0, cpus=1, cpu_s=HOUR)
    rows = spending(
        [cost_of(known, dark), cost_of(here, stage="linprobe")],
        [cost_of(hours(5, gpus=1, cpus=1), key="old")],
        factors,
        {"pretrain@mae": 1.5, "finetune@mae": 9.0},
    )
    trained, probed, others, total = rows
    assert [row.stage for row in rows] == ["pretrain", "linprobe", "other runs", "all"]
    assert (trained.hours, trained.gpu_hours, trained.cpu_hours) == (
        Amount(3), Amount(5), Amount(10),
    )  # fmt: skip
    assert (trained.lost_hours, trained.lost_gpu_hours) == (Amount(1), Amount(2))
    assert trained.waiting == Amount(1, whole=False)  # of one it is not known
    assert trained.cpu_use == 0.5
    assert trained.memory == (80, 100)
    assert trained.gpu_use == pytest.approx((4 * 0.5 + 1 * 1.0) / 5)
    assert trained.kwh == Amount(1, whole=False)
    assert not trained.assumed
    assert trained.co2_kg == Amount(0.4, whole=False)
    assert trained.price == Amount(5 * 2 + 10 * 0.5)
    assert (trained.projected_hours, trained.measured_hours, trained.ratio) == (1.5, 3, 2)
    assert probed.kwh == Amount(None, whole=False)  # never 0: nobody knows a processor's
    assert probed.price == Amount(0.5)
    assert probed.waiting == Amount(None)
    assert total.hours == Amount(9)
    assert total.runs == 3
    assert total.projected_hours == 1.5
    assert others.gpu_hours == Amount(5)
    names, cells = table(rows, factors)
    assert dict(zip(names, cells[1], strict=True))["kWh"] == "n/a"
    assert dict(zip(names, cells[0], strict=True))["kWh"] == "1.00+"
    assert "energy: of GPUs alone" in notes(rows, factors)


def test_watts_stand_in_where_nothing_was_measured() -> None:
    factors = CostFactors(watts_per_gpu=300, watts_per_cpu=10)
    row = spending([cost_of(hours(2, gpus=2, cpus=4))], [], factors)[0]
    assert row.kwh.value == pytest.approx(2 * (2 * 0.3 + 4 * 0.01))
    assert row.kwh.whole
    assert row.assumed
    assert row.price.value is None


def write_record(root: Path, began: Sequence[float], **asked: Any) -> JobFolder:
    """Leave a job of one attempt with so many starts, submitted at 900."""
    paths = JobFolder.of(root / ".asl", "f" * 64)
    paths.folder.mkdir(parents=True, exist_ok=True)
    write_job(paths, Job(
        stage="pretrain", key="mae", name="pretrain@mae", suite=".", fingerprint="f" * 64,
        recipe="r", document={}, submitted=900, host="h", user="u",
    ))  # fmt: skip
    terms = Terms(snapshot="s", resources={}, asked=asked, upstream={}, data_root="")
    write_attempt(paths, Attempt(
        number=1, token="t", job_id="5", submitted=900, host="h", user="u", terms=terms,
    ))  # fmt: skip
    for restart, moment in enumerate(began):
        write_start(paths, Start(
            attempt=1, restart=restart, job_id="5", nodes="n1", snapshot="s", began=moment,
            ended=None if restart == 0 else moment + 50, cause=None if restart == 0 else
            Cause.SUCCEEDED,
        ))  # fmt: skip
    return paths


class Booked:
    """A scheduler that is asked for its accounts alone."""

    def __init__(self, *accounts: Account) -> None:
        self.accounts, self.asked = list(accounts), list[list[str]]()

    def accounts_of(self, job_ids: Sequence[str]) -> list[Account]:
        self.asked.append(list(job_ids))
        return self.accounts


@pytest.fixture
def root(results: Any) -> Path:
    """Return a project whose suite has one run, of a job that was preempted once."""
    folder: Path = results.folder
    (folder / ".dvc").mkdir(exist_ok=True)
    return folder


def test_accounting_comes_before_records_and_these_before_journals(
    root: Path, results: Any
) -> None:
    paths = write_record(root, [995, 1990], gpus=2, nodes=2, cpus=3, memory="4G")
    preempted(paths.journal, attempt="1", restarts="0", job__id="5")
    text = (paths.journal / "attempt-001.jsonl").read_text()
    (paths.journal / "attempt-001.jsonl").write_text(
        text.replace('"restarts": "0"', '"restarts": "1"')
    )
    found = suite_costs(root, root, results.params, None, 9999)
    (run,) = found.current
    one, two = run.starts
    assert (one.began, one.ended, one.waited) == (995, 1100, 95)  # died: its journal says when
    assert (two.began, two.ended, two.waited) == (1990, 2040, 890)
    assert (one.gpus, one.cpus, one.memory) == (4, 6, 8 * 2**30)
    assert one.joules is None  # of one of its four GPUs alone
    assert (one.lost_s, two.cpu_s, two.memory_peak) == (40, 80, None)
    assert one.sources["began"] == "record"
    assert one.sources["gpu_use"] == "journal"
    booked = Booked(
        Account(job_id="5", state="PREEMPTED", ready=950, began=990, ended=1110, gpus=4, cpus=8),
        Account(job_id="5", state="COMPLETED", ready=1110, began=1985, ended=2045, cpu_s=99),
        Account(job_id="5", state="COMPLETED", ready=1, began=2, ended=3, cpu_s=1),  # another's
    )
    (run,) = suite_costs(root, root, results.params, booked, 9999).current  # type: ignore[arg-type]
    assert booked.asked == [["5"]]
    one, two = run.starts
    assert (one.began, one.ended, one.waited, one.cpus) == (990, 1110, 40, 8)
    assert (two.cpu_s, two.cpus, two.sources["cpus"]) == (99, 6, "record")
    assert two.sources["cpu_s"] == "accounting"
    # the accounts are gone, then the records too: what was known is kept
    again = suite_costs(root, root, results.params, Booked(), 9999)  # type: ignore[arg-type]
    assert again.current[0].starts == run.starts
    keep_costs_of(root / ".asl", [paths.folder], 9999)
    shutil.rmtree(paths.folder)
    (gone,) = suite_costs(root, root, results.params, None, 9999).current
    assert gone.starts == run.starts
    assert gone.status is RunStatus.SUCCEEDED


def test_a_start_that_left_no_journal_is_lost(root: Path, results: Any) -> None:
    write_record(root, [1000, 2000], gpus=1)
    booked = Booked(
        Account(job_id="5", state="NODE_FAIL", began=1000, ended=1600),
        Account(job_id="5", state="COMPLETED", began=2000, ended=2050),
    )
    (run,) = suite_costs(root, root, results.params, booked, 9999).current  # type: ignore[arg-type]
    assert [start.lost_s for start in run.starts] == [600, 0]


def test_two_starts_in_quick_succession_stay_two(root: Path, results: Any) -> None:
    write_record(root, [1000, 1013], gpus=1)
    booked = Booked(
        Account(job_id="5", state="PREEMPTED", began=998, ended=1006),
        Account(job_id="5", state="COMPLETED", ready=1012, began=1012, ended=1063),
    )
    for _ in range(2):  # the second time something is kept already
        (run,) = suite_costs(root, root, results.params, booked, 9999).current  # type: ignore[arg-type]
        assert [(start.began, start.ended) for start in run.starts] == [(998, 1006), (1012, 1063)]
        assert [start.waited for start in run.starts] == [98, 6]


def test_runs_of_other_settings_stand_apart(root: Path, results: Any) -> None:
    for number, name in enumerate(("a" * 64, "b" * 64)):
        journal = JobFolder.of(root / ".asl", name).journal
        more = tags()["values"] | {"fingerprint": name}
        lines(
            journal, 0, (number, "open", OPEN), (number, "tags", {"values": more}),
            (number + 10, "end", {"status": "SUCCEEDED", "message": ""}),
        )  # fmt: skip
    found = suite_costs(root, root, results.params, None, 99)
    assert [run.fingerprint[0] for run in found.current] == ["b"]  # the newest
    # the suite has the older one: its parameters are what they were
    shutil.copytree(
        JobFolder.of(root / ".asl", "a" * 64).journal, root / "runs/pretrain/mae/journal"
    )
    found = suite_costs(root, root, results.params, None, 99)
    assert [run.fingerprint[0] for run in found.current] == ["a"]
    assert [run.fingerprint[0] for run in found.others] == ["b"]


def test_a_kept_cost_is_read_back(tmp_path: Path) -> None:
    cost = cost_of(hours(2, gpus=1, sources={"began": "record"}, cpu_s=1.5))
    keep_cost(tmp_path, cost)
    (tmp_path / "costs" / "torn.json").write_text('{"stage": ')
    assert kept_costs(tmp_path) == [cost]


def test_the_meter_takes_the_gpus_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([{3: 100.0, 1: 50.0}, {3: 160.0, 1: 90.0}] * 2 + [{3: 9.0, 1: None}] * 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("ASL_JOB_ID", raising=False)
    alone = Meter(Resources(num_workers=3), lambda: next(counted))
    assert alone.allotted("cuda") == {
        "allotted.processes": "1", "allotted.cpus": "5", "allotted.gpus": "1",
        "allotted.gpu_indices": "3",
    }  # fmt: skip
    assert alone.allotted("cpu")["allotted.gpus"] == "0"
    assert alone.used()["used.gpu_joules"] == "60.0"
    monkeypatch.setenv("ASL_JOB_ID", "7")
    job = Meter(Resources(), lambda: next(counted))
    assert job.allotted("cuda")["allotted.gpu_indices"] == "3,1"
    assert job.used()["used.gpu_joules"] == "100.0"
    assert "used.gpu_joules" not in Meter(Resources(), lambda: next(counted)).used()  # one cannot


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("per_gpu_hour: -1", "cost.per_gpu_hour"),
        ("per_gpu_hour: cheap", "cost.per_gpu_hour"),
        ("per_cpu_hour: .inf", "cost.per_cpu_hour"),
        ("per_gpuhour: 2", "did you mean 'per_gpu_hour'"),
        ("currency: ''", "cost.currency"),
    ],
)
def test_wrong_factors_are_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"cost: {{{text}}}\n")
    with pytest.raises(UserError) as error:
        read_cluster(path)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_command_and_the_page(
    root: Path, results: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preempted(root / "runs/pretrain/mae/journal")
    results.result("pretrain", "mae", loss=1.0)
    (root / "cluster.yaml").write_text("cost: {currency: CHF, per_gpu_hour: 360}\n")
    monkeypatch.chdir(root)
    assert run_command(["cost", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    (row, total) = content["stages"]
    assert (row["stage"], row["starts"], row["price"]) == ("pretrain", 2, pytest.approx(14))
    assert total["currency"] == "CHF"
    assert row["waiting"] is None
    assert content["runs"][0]["starts"][0]["sources"]["joules"] == "journal"
    assert run_command(["cost"]) == 0
    assert "CHF" in capsys.readouterr().out
    shown = page(results.suite, load_paper()).split('id="cost-title">What it cost')[1]
    assert "CHF" not in shown  # what cluster.yaml says is no part of a report
    assert (
        '<th scope="row">pretrain</th><td class="number">1</td><td class="number">2</td>' in shown
    )
    (root / "cluster.yaml").write_text("cost: {per_gpu_hour: -1}\n")
    assert run_command(["cost"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_jobs_of_a_project_and_what_gc_leaves_of_them(
    site: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.root)
    site.stub(steps=3)
    site.submit()
    site.run()
    content = json.loads(say("cost", "--format", "json"))
    rows = {row["stage"]: row for row in content["stages"]}
    assert list(rows) == ["prepare", "pretrain", "linprobe", "all"]
    assert rows["pretrain"]["from"] == "job records 1"
    assert rows["all"]["starts"] == 3
    assert rows["linprobe"]["waiting"] is not None
    for run in content["runs"]:
        (start,) = run["starts"]
        assert start["sources"]["cpu_s"] == "journal"
        assert start["cpu_s"] > 0
        assert start["joules"] == 0
        assert start["lost_s"] == 0
    folders = [path.parent for path in (site.root / ".asl/jobs").glob("*/journal")]
    old = [Garbage(folder, "old", 1) for folder in folders]
    monkeypatch.setattr(garbage, "find_garbage", lambda *_: old)
    say("gc")
    assert not any(folder.exists() for folder in folders)
    again = {row["stage"]: row for row in json.loads(say("cost", "--format", "json"))["stages"]}
    assert again == rows
