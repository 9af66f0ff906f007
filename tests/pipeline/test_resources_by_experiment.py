"""cluster.yaml: settings of single experiments, typed GPUs, partitions, and mistakes in them."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config.cluster import (
    job_resources,
    load_job_request,
    load_resources,
    read_cluster,
)
from pipeline.config.job_resources import JobResources, megabytes
from pipeline.doctor.overrides import keys_of_all_suites, requests_of, unfitting
from pipeline.errors import UserError
from pipeline.project import Project
from pipeline.schedulers.slurm.resources import SlurmResources

ALL = """
local:
  default: {num_workers: 1}
  pretrain:
    threads: 2
    asl-vit-l: {micro_batch_size: 8}
  experiments:
    mae*: {num_workers: 3}
slurm:
  default: {gpus: "a100:1", env: {A: "1", B: "1"}, time: 10}
  pretrain:
    nodes: 2
    env: {B: "2"}
    asl-*: {nodes: 3, env: {C: "3"}}
    asl-vit-l: {nodes: 8, resources: {compile: true}}
    asl-vit-l-seed2: {nodes: 9}
  knn:
    asl-vit-l: {gpus: 4}
  prepare:
    coco: {memory: 64G}
  experiments:
    asl-vit-l: {time: 90, nodes: 5, partition: [long, gpu]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(ALL)
    return path


def asked(file: Path, stage: str, key: str | None = None) -> SlurmResources:
    found = load_job_request(file, stage, key).asked
    assert isinstance(found, SlurmResources)
    return found


@pytest.mark.parametrize(
    ("stage", "key", "nodes", "time", "env"),
    [
        ("pretrain", None, 2, 10, {"A": "1", "B": "2"}),
        ("pretrain", "mae", 2, 10, {"A": "1", "B": "2"}),
        ("pretrain", "asl-vit-b", 3, 10, {"A": "1", "B": "2", "C": "3"}),
        ("pretrain", "asl-vit-l", 8, 90, {"A": "1", "B": "2", "C": "3"}),
        ("pretrain", "asl-vit-l-seed1", 8, 90, {"A": "1", "B": "2", "C": "3"}),
        ("pretrain", "asl-vit-l-seed2", 9, 90, {"A": "1", "B": "2", "C": "3"}),
        ("pretrain", "asl-vit-l-long", 3, 10, {"A": "1", "B": "2", "C": "3"}),
        ("linprobe", "asl-vit-l", 5, 90, {"A": "1", "B": "1"}),
        ("linprobe", "mae", 1, 10, {"A": "1", "B": "1"}),
        ("prepare", "asl-vit-l", 1, 10, {"A": "1", "B": "1"}),  # a dataset that is called so
    ],
)
def test_what_says_more_of_a_run_wins(
    file: Path, stage: str, key: str | None, nodes: int, time: int, env: dict[str, str]
) -> None:
    found = asked(file, stage, key)
    assert (found.nodes, found.time, found.env) == (nodes, time, env)


def test_the_kind_of_gpu_goes_with_its_count_and_partitions_may_be_several(file: Path) -> None:
    one, four = asked(file, "knn"), asked(file, "knn", "asl-vit-l")
    assert (one.gpus, one.gpu_type) == (1, "a100")
    assert (four.gpus, four.gpu_type) == (4, None)
    assert (one.partition, four.partition) == (None, "long,gpu")
    assert asked(file, "prepare", "coco").memory == "64G"
    back = json.loads(json.dumps(asdict(one)))
    assert job_resources("slurm", back) == one


def test_runs_here_and_processes_in_jobs_have_their_own_too(file: Path) -> None:
    here = load_resources(file, "pretrain", "asl-vit-l-seed7")
    assert (here.num_workers, here.threads, here.micro_batch_size) == (1, 2, 8)
    assert load_resources(file, "pretrain", "mae-b").num_workers == 3
    assert load_resources(file, "knn", "asl-vit-l").micro_batch_size is None
    job = load_job_request(file, "pretrain", "asl-vit-l").resources
    assert (job.compile, job.micro_batch_size, job.threads) == (True, 8, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slurm: {pretrain: {asl: {node: 2}}}",
         "slurm.pretrain.asl.node: unknown key; did you mean 'nodes'?"),
        ("slurm: {experiments: {asl: {nodes: 0}}}",
         "slurm.experiments.asl: got nodes 0, expected 1 or more"),
        ("slurm: {experiments: {asl: 3}}", "slurm.experiments.asl: got 3, expected a mapping"),
        ("slurm: {default: {asl: {nodes: 2}}}", "slurm.default.asl: unknown key"),
        ("slurm: {pretrain: {asl: 3}}", "slurm.pretrain.asl: unknown key"),
        ("slurm: {pretrain: {gpus: 2, asl: {tasks_per_node: 4, gpus: 3}}}",
         "slurm.pretrain.asl: got tasks_per_node 4 on 3 GPUs a node"),
        ("slurm: {pretrain: {gpus: 2, asl: {tasks_per_node: 4}}}",  # together with the stage's
         "slurm.pretrain.asl: got tasks_per_node 4 on 2 GPUs a node"),
        ("local: {pretrain: {asl: {micro_batch_size: 0}}}",
         "local.pretrain.asl: micro_batch_size must be at least 1, got 0"),
        ("local: {experiments: {asl: {micro_batch: 4}}}",
         "local.experiments.asl.micro_batch: unknown key; did you mean 'micro_batch_size'?"),
        ("slurm: {pretrain: {asl: {resources: {thread: 1}}}}",
         "slurm.pretrain.asl.resources.thread: unknown key; did you mean 'threads'?"),
        ('slurm: {default: {gpus: "a100:four"}}', "slurm.default.gpus: got 'a100:four', expected"),
        ("slurm: {default: {partition: [1, 2]}}", "slurm.default.partition: got [1, 2], expected"),
        ("slurm: {default: {max_running: 0}}", "slurm.default: got max_running 0, expected 1"),
        ("slurm: {default: {memory: 64G, memory_most: 32G}}",
         "slurm.default: got memory_most 32G, less than memory 64G"),
        ("slurm: {default: {retries: -1}}", "slurm.default: got retries -1, expected 0 or more"),
        ("notify: {webhook: example.org}", "notify.webhook: got 'example.org', expected https://"),
        ("notify: {mail: me}", "notify.mail: unknown key (valid: command, webhook)"),
        ("slurm: {folow_up: {}}", "slurm.folow_up: unknown key; did you mean 'follow_up'?"),
        ("slurm: {follow_up: {nodes: 0}}", "slurm.follow_up: got nodes 0, expected 1 or more"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_patterns_that_fit_one_run_and_do_not_go_together_are_one_line(file: Path) -> None:
    file.write_text("slurm: {pretrain: {a*: {gpus: 2}, '*l': {gpus: 3, tasks_per_node: 3}}}")
    assert asked(file, "pretrain", "model").tasks_per_node == 3
    file.write_text("slurm: {pretrain: {'*l': {gpus: 3, tasks_per_node: 3}, a*: {gpus: 2}}}")
    with pytest.raises(
        UserError, match=r"got tasks_per_node 3 on 2 GPUs a node.*for asl"
    ) as caught:
        load_job_request(file, "pretrain", "asl")
    assert len(str(caught.value).splitlines()) == 1


def test_a_follow_up_asks_for_little_where_stages_go(file: Path) -> None:
    file.write_text(
        "slurm: {default: {partition: gpu, account: lab, gpus: 8, memory: 900G, cpus: 64,"
        " nodes: 4, time: 3-00, setup: [module load x], resources: {threads: 8}}}"
    )
    found = read_cluster(file).follow_up_request()
    assert found == SlurmResources(
        partition="gpu", account="lab", time=30, setup=("module load x",)
    )
    file.write_text("slurm: {default: {partition: gpu}, follow_up: {partition: cpu, memory: 2G}}")
    assert read_cluster(file).follow_up_request() == SlurmResources(
        partition="cpu", time=30, memory="2G"
    )


def test_names_that_fit_no_experiment_of_any_suite_are_said_and_others_tried(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "suites/other"
    other.mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("experiments: {asl-vit-l: {}}\nknn: {asl-vit-l: {}}\n")
    (other / "params.yaml").write_text("experiments: {mae-b: {}}\ndatasets: {coco: {}}\n")
    project = Project(tmp_path, tmp_path)
    keys, cluster = keys_of_all_suites(project), read_cluster(file)
    (line,) = unfitting(cluster, keys)
    assert "slurm.pretrain.asl-vit-l-seed2: no experiment of any suite is called so" in line
    found = requests_of(cluster, keys)
    assert found["pretrain"].nodes == 2
    assert found["pretrain asl-vit-l"].nodes == 8
    assert found["prepare coco"].memory == "64G"
    assert all(isinstance(each, JobResources) for each in found.values())


def test_validate_says_it_and_goes_on(
    stub_project: Path, monkeypatch: pytest.MonkeyPatch, say: Callable[..., str]
) -> None:
    monkeypatch.chdir(stub_project)
    (stub_project / "cluster.yaml").write_text("slurm: {experiments: {asll: {nodes: 2}}}\n")
    said = say("validate")
    assert "slurm.experiments.asll: no experiment of any suite is called so; did you mean" in said


@pytest.mark.parametrize(
    ("size", "expected"),
    [("64", 64), ("64M", 64), ("64G", 65536), ("1T", 2**20), ("1500K", 2), ("1024K", 1)],
)
def test_memory_is_read_as_sbatch_reads_it(size: str, expected: int) -> None:
    assert megabytes(size) == expected
