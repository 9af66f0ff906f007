"""cluster.yaml: what a stage's job asks for, and what is said about mistakes."""

import dataclasses
import json
from pathlib import Path

import pytest
from fake_scheduler import FakeScheduler

from pipeline.config.cluster import STAGES, job_resources, load_job_request, load_resources
from pipeline.config.job_resources import JobResources
from pipeline.config.schedulers import SCHEDULERS, load_settings
from pipeline.errors import UserError
from pipeline.schedulers.find import find_kind, find_scheduler
from pipeline.schedulers.port import SchedulerKind
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.slurm.scheduler import SlurmScheduler

ROOT = Path(__file__).parents[2]


def load_slurm(path: Path, stage: str) -> SlurmResources:
    request = load_job_request(path, stage)
    assert request.scheduler == "slurm"
    assert isinstance(request.asked, SlurmResources)
    return request.asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def test_without_a_file_a_job_asks_for_one_core_of_one_node(file: Path) -> None:
    assert load_slurm(file, "pretrain") == SlurmResources()
    assert (SlurmResources().nodes, SlurmResources().cpus) == (1, 1)


def test_a_stages_settings_win_over_default_and_mappings_are_merged(file: Path) -> None:
    file.write_text("""
slurm:
  default: {partition: gpu, time: 24:00:00, setup: [a], env: {A: "1", B: "2"}, options: {x: true}}
  pretrain: {nodes: 4, time: 90, setup: [b], env: {B: "3"}, options: {y: 2}}
""")
    pretrain, linprobe = load_slurm(file, "pretrain"), load_slurm(file, "linprobe")
    assert (pretrain.partition, pretrain.nodes, pretrain.time) == ("gpu", 4, 90)
    assert pretrain.setup == ("b",)
    assert pretrain.env == {"A": "1", "B": "3"}
    assert pretrain.options == {"x": True, "y": 2}
    assert (linprobe.nodes, linprobe.time_seconds) == (1, 24 * 3600)


def test_a_job_has_the_resources_of_here_but_for_what_slurm_says(file: Path) -> None:
    file.write_text("""
local:
  default: {num_workers: 1, threads: 2}
slurm:
  default: {resources: {num_workers: 8}}
  pretrain: {resources: {compile: true}}
""")
    job = load_job_request(file, "pretrain").resources
    assert (job.num_workers, job.threads, job.compile) == (8, 2, True)
    assert load_resources(file, "pretrain").num_workers == 1


def test_a_job_loads_with_the_cpus_that_do_not_compute(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("slurm: {default: {cpus: 8}, knn: {cpus: 1}}\n")
    assert load_job_request(file, "pretrain").resources.num_workers == 7
    assert load_job_request(file, "knn").resources.num_workers == 0
    assert load_resources(file, "pretrain").num_workers == 0
    file.write_text("local: {default: {num_workers: 2}}\nslurm: {default: {cpus: 8}}\n")
    assert load_job_request(file, "pretrain").resources.num_workers == 2


def test_what_a_job_asks_for_survives_json(file: Path) -> None:
    file.write_text('slurm: {default: {setup: [a], env: {A: "1"}, options: {x: 1}, time: 5}}')
    asked = load_slurm(file, "detect")
    back = json.loads(json.dumps(dataclasses.asdict(asked)))
    assert job_resources("slurm", back) == asked


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (90, 5400), ("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("2-3", 51 * 3600),
        ("2-3:04", 51 * 3600 + 240), ("2-3:04:05", 51 * 3600 + 245),
    ],
)  # fmt: skip
def test_a_time_limit_is_read_as_sbatch_reads_it(limit: str | int, seconds: int) -> None:
    assert SlurmResources(time=limit).time_seconds == seconds


def test_a_warning_comes_two_minutes_before_the_limit_or_a_quarter_of_a_short_one() -> None:
    assert SlurmResources().warning_seconds == 120
    assert SlurmResources(time="24:00:00").warning_seconds == 120
    assert SlurmResources(time=2).warning_seconds == 30
    assert SlurmResources(time=2, warning=50).warning_seconds == 50


def test_variables_are_quoted_for_the_shell_and_come_first() -> None:
    asked = SlurmResources(env={"A": "it's $HOME"}, setup=("module load x",))
    assert asked.setup_lines() == ("""export A='it'"'"'s $HOME'""", "module load x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slrum: {}", "slrum: unknown key; did you mean 'slurm'?"),
        ("slurm: {pretrian: {}}", "slurm.pretrian: unknown key; did you mean 'pretrain'?"),
        ("slurm: {default: {partion: x}}", "slurm.default.partion: unknown key; did you mean"),
        ("slurm: {default: {nodes: two}}", "slurm.default.nodes: got 'two', expected a whole"),
        ("slurm: {default: {nodes: 0}}", "slurm.default: got nodes 0, expected 1 or more"),
        ("slurm: {default: {time: soon}}", "got time 'soon', expected minutes, HH:MM:SS"),
        ("slurm: {default: {memory: 64 GB}}", "got memory '64 GB', expected a size such as 64G"),
        ("slurm: {default: {requeue: maybe}}", "expected one of allowed, resubmit"),
        ("slurm: {default: {options: {output: x}}}", "got output in options: remove it"),
        ("slurm: {default: {options: {cpus_per_task: 2}}}", "got cpus-per-task in options"),
        ('slurm: {default: {env: {A-B: "1"}}}', "got 'A-B' in env, expected the name of a var"),
        ("slurm: {default: {resources: {num_worker: 1}}}",
         "slurm.default.resources.num_worker: unknown key; did you mean 'num_workers'?"),
        ("local: {default: {log_every_steps: 0}}",
         "local.default: log_every_steps must be at least 1, got 0"),
        ("slurm: {pretrain: {resources: {micro_batch_size: -1}}}",
         "slurm.pretrain.resources: micro_batch_size must be at least 1, got -1"),
        ("slurm: {default: 3}", "slurm.default: got 3, expected a mapping"),
        ("slurm: 3", "slurm: got 3, expected a mapping"),
        ("scheduler: 3", "scheduler: got 3, expected a text"),
        ("scheduler: slrum", "scheduler: got 'slrum', expected one of slurm, local, or "
         "module:function; did you mean 'slurm'?"),
        ("scheduler: nowhere:own", "scheduler: nowhere:own cannot be loaded: No module named"),
        ("scheduler: json:loads", "scheduler: json:loads cannot be loaded: loads() missing"),
        ("scheduler: os:getpid", "scheduler: os:getpid returns int, expected a SchedulerKind"),
        ("scheduler: fake_scheduler:fake\nslurm: {default: {nodes: 0}}",  # another one's section
         "slurm.default: got nodes 0, expected 1 or more"),
        ("scheduler: fake_scheduler:fake\nfake: {default: {partition: gpu}}",
         "fake.default.partition: unknown key (valid: nodes, tasks_per_node, gpus, cpus,"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    for stage in ("pretrain", "report"):  # whichever stage is run
        with pytest.raises(UserError) as caught:
            load_resources(file, stage)
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_settings_that_do_not_go_together_are_found_across_sections(file: Path) -> None:
    file.write_text("slurm: {default: {gpus: 4}, pretrain: {tasks_per_node: 8}}")
    with pytest.raises(UserError, match=r"slurm\.pretrain: got tasks_per_node 8 on 4 GPUs a node"):
        load_slurm(file, "linprobe")


def test_jobs_go_to_slurm_unless_the_file_or_the_environment_names_another(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = file.with_name("project") / ".asl"
    file = scratch.with_name("cluster.yaml")
    scratch.mkdir(parents=True)
    assert isinstance(find_scheduler(scratch), SlurmScheduler)
    file.write_text("scheduler: fake_scheduler:fake\nfake: {pretrain: {nodes: 2}}")
    assert isinstance(find_scheduler(scratch), FakeScheduler)
    request = load_job_request(file, "pretrain")
    assert request.scheduler == "fake_scheduler:fake"
    assert request.asked == JobResources(nodes=2)
    monkeypatch.setenv("ASL_SCHEDULER", "slurm")
    assert isinstance(find_scheduler(scratch), SlurmScheduler)
    assert load_job_request(file, "pretrain").asked == SlurmResources()


def test_a_mistake_elsewhere_in_the_file_does_not_hide_the_queue(file: Path) -> None:
    file.write_text("slurm: {default: {nodes: 0}}\nlocla: {}")
    assert find_kind(file).section == "slurm"
    file.write_text("scheduler: slrum")
    with pytest.raises(UserError, match="did you mean 'slurm'"):
        find_kind(file)


def test_every_row_of_the_table_is_a_scheduler_with_a_section_of_its_own() -> None:
    kinds = [load_settings(name) for name in SCHEDULERS]
    assert all(isinstance(kind, SchedulerKind) for kind in kinds)
    sections = [kind.section for kind in kinds]
    assert len(set(sections)) == len(sections)
    assert "local" not in sections  # what stages get that run here


def test_the_projects_own_file_is_valid() -> None:
    for stage in STAGES:
        load_slurm(ROOT / "cluster.yaml", stage)
