"""The job that looks after the others: it submits again what may be, and tells people."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_scheduler import NEVER

from pipeline.config.cluster import Notify, read_cluster
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import read_attempts
from pipeline.jobs.starts import Cause, read_starts
from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import EndKind, SubmitError
from pipeline.submission.follow_up import (
    DONE,
    FOLDER,
    follow_up_problems,
    read_follow_up,
    unfinished,
)
from pipeline.submission.job_reports import Queue
from pipeline.submission.notify import RunEnd, message_of, tell
from pipeline.submission.submit import follow
from pipeline.worker import follow_up as worker

ENDS = [
    RunEnd("prepare@icons", "SUCCEEDED", "1"),
    RunEnd("pretrain@asl", "FAILED", "2", "ZeroDivisionError", "see asl-pipe logs pretrain@asl"),
    RunEnd("linprobe@asl", "waits", "3", "needs pretrain@asl"),
]


class Receiver:
    """A web server of this machine that keeps what it is sent; answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, json.loads(body)))
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Receiver()
    yield made
    made.close()


def ask(site, *, notify: dict[str, str] | None = None, **settings: Any) -> None:
    """Write cluster.yaml: settings of pretrain's jobs, and who is told."""
    content: dict[str, Any] = {
        "scheduler": "fake_scheduler:fake", "fake": {"pretrain": settings}, "notify": notify or {},
    }  # fmt: skip
    (site.root / "cluster.yaml").write_text(yaml.safe_dump(content))


def submit(site) -> None:
    plan = site.plan()
    results = worker_submit(plan, site)
    assert follow(plan, site.services, results) is not None


def worker_submit(plan: Any, site: Any) -> Any:
    from pipeline.submission.submit import submit as carry_out

    return carry_out(plan, site.services)


def finish(site) -> None:
    """Let the cluster work, and this process do what follow-ups are for: it waits less long."""
    start, scratch = site.cluster._start_if_free, site.root / ".asl"

    def start_others(job: dict[str, Any]) -> None:
        if not job["after_any"]:
            start(job)

    site.cluster._start_if_free = start_others
    environment = {"PATH": os.environ["PATH"]}
    while True:
        site.run(until=lambda: is_at_rest(site))
        left = list(unfinished(scratch))
        for each in left:
            worker.follow(scratch / FOLDER / each.token, site.services, environment)
            site.cluster._write(site.cluster.read(str(each.job_id)) | {"state": "COMPLETED"})
        if not left:
            return


def is_at_rest(site) -> bool:
    waiting = [job for job in site.cluster.all() if job["state"] == "PENDING"]
    never = (job["after_any"] or job["reason"] == NEVER for job in waiting)
    return not site.cluster.processes and all(never)


def jobs(site) -> list[str]:
    return [job["name"] for job in site.cluster.all()]


def dones(site) -> list[dict[str, Any]]:
    """Return what follow-ups have done, the first one first."""
    found = (site.root / ".asl" / FOLDER).glob(f"*/{DONE}")
    return sorted((json.loads(path.read_text()) for path in found), key=lambda done: done["ended"])


def attempts(site, name: str) -> list[Any]:
    return read_attempts(site.reports()[name].paths)


# What is told


def test_a_message_names_first_who_needs_somebody() -> None:
    found = message_of("/project", "table1", ENDS, ended=True)
    assert found.subject == ("table1: 1 of 3 runs succeeded; 1 needs somebody; all jobs have ended")
    assert found.text.splitlines()[1:] == [
        "pretrain@asl: FAILED ZeroDivisionError -> see asl-pipe logs pretrain@asl",
        "linprobe@asl: waits needs pretrain@asl", "/project",
    ]  # fmt: skip
    assert "others go on" in message_of("/project", "table1", ENDS, ended=False).subject


def test_a_command_gets_json_and_a_webhook_gets_it_as_a_post(
    receiver: Receiver, tmp_path: Path
) -> None:
    message = message_of("/project", "table1", ENDS, ended=True)
    notify = Notify(
        command=f"cat > {tmp_path}/said", webhook=f"http://127.0.0.1:{receiver.port}/$HOOK?x=${{T}}"
    )
    environment = {"HOOK": "secret", "T": "token", "PATH": "/usr/bin:/bin"}
    assert tell(message, notify, environment, pause=lambda _: None) == []
    ((path, posted),) = receiver.got
    assert path == "/secret?x=token"
    assert posted == json.loads((tmp_path / "said").read_text())
    assert posted["text"] == message.text
    assert [run["name"] for run in posted["runs"]] == [end.name for end in ENDS]


@pytest.mark.parametrize(
    ("answers", "asked", "said"),
    [
        ([500, 429, 200], 3, []),
        ([500, 503, 500], 3, ["notify.webhook at 127.0.0.1: it answers 500"]),
        ([404], 1, ["notify.webhook at 127.0.0.1: it answers 404"]),
    ],
)
def test_a_webhook_is_tried_again_where_that_may_help_and_its_address_is_not_said(
    receiver: Receiver, answers: list[int], asked: int, said: list[str]
) -> None:
    receiver.answers = answers
    notify = Notify(webhook=f"http://127.0.0.1:{receiver.port}/secret")
    message = message_of("/project", "demo", ENDS, ended=True)
    assert tell(message, notify, {}, pause=lambda _: None) == said
    assert len(receiver.got) == asked


def test_who_cannot_be_told_is_one_line_without_the_secret() -> None:
    message = message_of("/project", "demo", ENDS, ended=True)

    def said(notify: Notify, **environment: str) -> list[str]:
        return tell(message, notify, {"PATH": "/usr/bin:/bin", **environment}, lambda _: None)

    assert said(Notify(webhook="$HOOK")) == [
        "notify.webhook: the environment of the job has no HOOK"
    ]
    assert said(Notify(webhook="$HOOK"), HOOK="secret") == [
        "notify.webhook is no address that begins with http:// or https://"
    ]
    (line,) = said(Notify(webhook="http://127.0.0.1:9/secret"))
    assert line.startswith("notify.webhook at 127.0.0.1: ")
    assert "secret" not in line
    assert said(Notify(command="exit 3")) == ["notify.command ended with 3"]


# What it does


def test_it_is_told_when_all_jobs_have_ended(site, receiver: Receiver) -> None:
    ask(site, notify={"webhook": f"http://127.0.0.1:{receiver.port}/$HOOK"})
    site.cluster.environment["HOOK"] = "secret"
    submit(site)
    assert jobs(site)[-1] == "follow-up ."
    site.run()
    assert site.verdict("linprobe@asl") is Verdict.SUCCEEDED
    ((path, posted),) = receiver.got
    assert path == "/secret"
    assert posted["ended"]
    assert posted["subject"] == "demo: 3 of 3 runs succeeded; all jobs have ended"
    records = (site.root / ".asl").rglob("*.json")
    assert not any("secret" in path.read_text() for path in records)
    # all is done: there is nothing to look after any more
    plan = site.plan()
    assert follow(plan, site.services, worker_submit(plan, site)) is None


def test_retries_end_and_then_it_is_said_who_needs_somebody_and_what_waits_for_it(
    site, tmp_path: Path
) -> None:
    ask(site, retries=1, notify={"command": f"cat > {tmp_path}/said"})
    site.stub(ends=[str(tmp_path / "starts"), ["error"] * 5])
    submit(site)
    finish(site)
    said = json.loads((tmp_path / "said").read_text())
    ends = {run["name"]: run for run in said["runs"]}
    assert ends["pretrain@asl"]["outcome"] == "FAILED"
    assert "after 1 retry" in ends["pretrain@asl"]["why"]
    assert "asl-pipe logs pretrain@asl" in ends["pretrain@asl"]["remedy"]
    assert ends["linprobe@asl"]["outcome"] == "waits"
    assert ends["linprobe@asl"]["why"] == "needs pretrain@asl"
    assert "1 of 3 runs succeeded; 1 needs somebody" in said["subject"]
    assert len(attempts(site, "pretrain@asl")) == 2


def test_a_run_that_dies_goes_on_with_what_waits_for_it_and_its_next_follow_up(
    site, tmp_path: Path
) -> None:
    ask(site, retries=2, notify={"command": f"cat >> {tmp_path}/said"})
    site.stub(ends=[str(tmp_path / "starts"), ["kill", "error"]], steps=7)
    submit(site)
    finish(site)
    assert [site.verdict(name) for name in ("pretrain@asl", "linprobe@asl")] == [
        Verdict.SUCCEEDED, Verdict.SUCCEEDED,
    ]  # fmt: skip
    tries = attempts(site, "pretrain@asl")
    assert [each.retry for each in tries] == [0, 1, 2]
    assert len({each.terms.snapshot for each in tries}) == 1
    causes = [each.cause for each in read_starts(site.reports()["pretrain@asl"].paths)]
    assert causes == [None, Cause.CRASHED, Cause.SUCCEEDED], "nobody could say how it died"
    assert jobs(site).count("follow-up .") == 3
    said = (tmp_path / "said").read_text()
    assert said.count('"subject"') == 1, "told once, at the end"
    assert "3 of 3 runs succeeded" in said
    assert list(unfinished(site.root / ".asl")) == []


def test_a_cancelled_run_is_not_submitted_again(site, tmp_path: Path) -> None:
    ask(site, retries=3, notify={"command": f"cat >> {tmp_path}/said"})
    site.stub(steps=100, step_s=0.1)
    submit(site)
    job_id = site.run_until_step("pretrain@asl", 2)
    site.cluster.cancel([job_id])
    finish(site)
    assert len(attempts(site, "pretrain@asl")) == 1
    assert "it was stopped; asl-pipe submit resumes it" in (tmp_path / "said").read_text()


def test_what_was_dropped_goes_on_where_what_it_needed_was_made_after_all(
    site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(site, retries=1, notify={"command": f"cat > {tmp_path}/said"})
    submit(site)
    waiting = site.reports()["linprobe@asl"].job_id
    needed = site.reports()["pretrain@asl"].job_id
    # the scheduler gives a node up, drops what waits for its job, and the job's processes live on
    site.cluster.cancel([waiting])
    ends = {needed: [EndKind.NODE_FAILED], waiting: [EndKind.CANCELLED]}
    for name, answer in (("node_names", ("n1",)), ("eligible_nodes", ("n1", "n2"))):
        monkeypatch.setattr(site.cluster, name, lambda *_, answer=answer: answer, raising=False)
    monkeypatch.setattr(site.cluster, "ends_of", lambda job_id: ends.get(job_id, []), raising=False)
    finish(site)
    assert site.verdict("linprobe@asl") is Verdict.SUCCEEDED
    assert len(attempts(site, "pretrain@asl")) == 1
    assert "3 of 3 runs succeeded" in (tmp_path / "said").read_text()


def test_after_too_little_memory_there_is_more_and_then_it_is_said_what_to_raise(
    site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say
) -> None:
    ask(site, memory="4G", memory_most="6G", notify={"command": f"cat > {tmp_path}/said"})
    site.stub(ends=[str(tmp_path / "starts"), ["memory"] * 5])
    submit(site)
    finish(site)
    asked = [each.terms.asked["memory"] for each in attempts(site, "pretrain@asl")]
    assert asked == ["4G", "6G"]
    remedy = "out of memory with 6G: raise memory_most in cluster.yaml"
    assert remedy in (tmp_path / "said").read_text()
    monkeypatch.chdir(site.root)
    assert remedy in say("status")


def test_a_node_on_which_a_run_died_twice_is_avoided_and_status_says_why(
    site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.submission.status import with_history

    for name, answer in (("ends_of", [EndKind.OTHER]), ("node_names", ("n1",)),
                         ("eligible_nodes", ("n1", "n2", "n3"))):  # fmt: skip
        monkeypatch.setattr(site.cluster, name, lambda *_, answer=answer: answer, raising=False)
    ask(site)
    site.stub(ends=[str(tmp_path / "starts"), ["kill", "error"]])
    plan = site.plan("prepare")
    assert plan.follow_up is None, "nothing for it to do"
    assert follow(plan, site.services, worker_submit(plan, site)) is None
    site.run()
    for tries in (1, 2, 3):
        site.submit("pretrain")
        site.run()
        assert len(attempts(site, "pretrain@asl")) == tries
        if tries < 3:
            site.cluster.forget_ended()
            wait_until_lost(site)
    avoided = [list(each.terms.avoid) for each in attempts(site, "pretrain@asl")]
    assert avoided == [[], [], ["n1"]]
    assert [job["avoid"] for job in site.cluster.all() if job["name"] == "pretrain@asl"] == [["n1"]]
    shown = {each.job.name: each for each in with_history(list(site.reports().values()),
                                                          site.cluster)}  # fmt: skip
    detail = shown["pretrain@asl"].finding.detail
    assert "avoids n1: the run died there once and the run crashed there once" in detail


def wait_until_lost(site) -> None:
    import time

    give_up = time.monotonic() + 20
    while site.verdict("pretrain@asl") is Verdict.SETTLING:
        assert time.monotonic() < give_up
        time.sleep(0.1)


# What if it is not there


def test_a_follow_up_that_is_refused_or_lost_is_said_and_made_again(site) -> None:
    ask(site, retries=1)
    scratch, plan = site.root / ".asl", site.plan()
    results = worker_submit(plan, site)
    site.cluster.set_fault("refuse", 1)
    with pytest.raises(SubmitError, match="Invalid account"):
        follow(plan, site.services, results)
    assert list(unfinished(scratch)) == []
    site.cluster.set_fault("lie", 1)  # it is taken, and an error reported
    made = follow(plan, site.services, results)
    assert made is not None
    assert made.job_id is not None
    assert follow(plan, site.services, results) is None, "somebody looks after it"
    assert follow_up_problems(scratch, Queue(site.cluster), made.submitted + 9, 1.0) == []
    site.cluster.cancel([made.job_id])
    (line,) = follow_up_problems(scratch, Queue(site.cluster), made.submitted + 9, 1.0)
    assert "ended without doing its work: nobody was told" in line
    assert follow(plan, site.services, results) is not None


def test_one_that_cannot_be_followed_any_more_tells_so(site, tmp_path: Path) -> None:
    ask(site, retries=1, notify={"command": f"cat >> {tmp_path}/said"})
    site.stub(ends=[str(tmp_path / "starts"), ["error"]])
    plan = site.plan()
    results = worker_submit(plan, site)
    made = follow(plan, site.services, results)
    assert made is not None
    assert made.job_id is not None
    site.cluster.cancel([made.job_id])
    site.run()
    # pretrain is submitted again, linprobe too, and the next follow-up is refused
    folder = site.root / ".asl" / FOLDER / made.token
    taken = site.cluster.submit

    def refuse(batch: Any) -> list[str]:
        if batch[0].after_any:
            raise SubmitError("no room", ambiguous=False)
        return taken(batch)

    site.cluster.submit = refuse
    code = worker.follow(folder, site.services, {"PATH": "/usr/bin:/bin"})
    assert code == 1
    said = (tmp_path / "said").read_text()
    assert "nobody looks after it any more: asl-pipe submit makes a follow-up" in said
    (done,) = dones(site)
    assert "no follow-up for linprobe@asl, pretrain@asl: no room" in done["problems"][0]


def test_a_record_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".asl" / FOLDER / "x").mkdir(parents=True)
    folder = tmp_path / ".asl" / FOLDER / "x"
    assert read_follow_up(folder) is None
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.worker.follow_up", str(folder)], capture_output=True,
        text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no record that can be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_cluster_yaml_says_who_is_told(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text('notify: {command: "mail -s runs me", webhook: $HOOK}')
    assert read_cluster(file).notify == Notify(command="mail -s runs me", webhook="$HOOK")
    assert JobFolder.of(tmp_path, "f").starts == tmp_path / "jobs/f/starts"
