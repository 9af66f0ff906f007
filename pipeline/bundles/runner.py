"""Runs a bundle's runs one after the other, each in a process of its own, and packs the results.

A signal is handed to the run that is under way, which checkpoints after its step; the same command
goes on from there.
"""

import importlib.util
import math
import shutil
import signal
import sys
import time
from pathlib import Path

from pipeline.bundles.apart import A_RUN_FAILED, DONE, begin, noted_signals
from pipeline.bundles.archive import write_archive
from pipeline.bundles.length import EPOCHS, trainings
from pipeline.bundles.manifest import (
    CODE,
    RESULTS_DIGEST,
    RESULTS_FILE,
    RUNS,
    Marks,
    Record,
    Results,
    RunPlan,
    Status,
    mark_bytes,
    mark_file,
)
from pipeline.bundles.measure import settle
from pipeline.bundles.one_run import Bundle, places_of, run_one
from pipeline.errors import AslPipeError
from pipeline.jobs.progress import Progress, ProgressReader

NOT_FINISHED = 75
"""Exit code beside those of `apart`."""
POLL_S, PROGRESS_S = 0.1, 30.0
MEASURE_S = 5.0
"""For which each pre-training is measured before a length is chosen."""


def run_all(bundle: Bundle, results: Path, minutes: float | None = None) -> int:
    """Run what is not finished; write the results after each run. Return the exit code.

    Args:
        bundle: What to run.
        results: The archive to write.
        minutes: In which all pre-trainings are to be made, for as many epochs as fit; absent: for
            those that they were packed with.
    """
    with noted_signals() as asked:
        try:
            settled = settle(bundle, minutes, MEASURE_S, asked, _say)
        except AslPipeError as error:
            _say(str(error))
            return error.exit_code
        code = _run_all(settled, results, asked)
    if settled.manifest is not bundle.manifest:
        epochs = trainings(settled.manifest.runs)[0].recipe[EPOCHS]
        _say(f"epochs: {epochs} was chosen here; write it into the suite before you accept")
    return code


def _run_all(bundle: Bundle, results: Path, asked: list[int]) -> int:
    runs, records, written = bundle.manifest.runs, _known(bundle), False
    for number, plan in enumerate(runs, start=1):
        if asked:
            break
        where = f"{plan.name} ({number} of {len(runs)})"
        if records[plan.name].status is Status.FINISHED:
            _say(f"{where}: finished before")
            continue
        lacking = [name for name in plan.makers.values()
                   if records[name].status is not Status.FINISHED]  # fmt: skip
        if lacking:
            _say(f"{where}: not begun, {lacking[0]} is {records[lacking[0]].status}")
            continue
        absent = [name for name in plan.packages if importlib.util.find_spec(name) is None]
        if absent:
            _say(f"{where}: not begun, {', '.join(absent)} cannot be imported")
            continue
        _say(f"{where}: begins")
        records[plan.name] = _run_apart(bundle, plan, asked)
        _say(_ended(where, records[plan.name]))
        written = _pack(bundle, records, results)
        if records[plan.name].status is Status.INTERRUPTED:
            break
    if not (written or _pack(bundle, records, results)):
        return A_RUN_FAILED
    return _summarise(records, results)


def _known(bundle: Bundle) -> dict[str, Record]:
    """Return what became of each run until now."""
    records: dict[str, Record] = {}
    for plan in bundle.manifest.runs:
        record = bundle.work.read_record(plan.name)
        if record is None or record.fingerprint != plan.fingerprint:  # begun at another length
            record = Record(name=plan.name, status=Status.WAITING)
        records[plan.name] = record
    return records


def _run_apart(bundle: Bundle, plan: RunPlan, asked: list[int]) -> Record:
    """Run in a child process; hand signals to it, print how far it is."""
    shown, last = time.monotonic(), Progress()
    child = begin(plan.name, lambda: run_one(bundle, plan), asked)
    progress = ProgressReader(bundle.work.job(plan.fingerprint).journal, plan.stage)
    while child.poll():
        if time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            seen = progress.read()
            # a terminal has a bar; stages say a line themselves at each tenth
            if seen != last and not sys.stderr.isatty():
                _say(_progress(plan.name, seen))
            last = seen
        time.sleep(POLL_S)
    record, code = bundle.work.read_record(plan.name), child.code or DONE
    if code == DONE and record is not None:
        return record
    if code == -signal.SIGTERM and asked:  # before it could say so itself
        return Record(name=plan.name, status=Status.INTERRUPTED, detail="stopped before it began")
    said = f"its process ended with {code}"
    if code < 0:
        said = f"its process was ended by {signal.Signals(-code).name}"
        said += "; was memory too small?" * (code == -signal.SIGKILL)
    return Record(name=plan.name, status=Status.FAILED, detail=said)


def _pack(bundle: Bundle, records: dict[str, Record], target: Path) -> bool:
    """Write what comes back and say whether that worked: a full disk must not end what goes on."""
    try:
        pack_results(bundle, records, target)
    except OSError as error:
        _say(f"{target} cannot be written ({error.strerror}); make room, and start again")
        return False
    return True


def pack_results(bundle: Bundle, records: dict[str, Record], target: Path) -> None:
    """Write what comes back: outputs of the runs that are finished, and what became of the others.

    Args:
        bundle: What was run.
        records: What became of each run.
        target: The archive.
    """
    entries: dict[str, Path | bytes] = {}
    marks = Marks()
    for plan in bundle.manifest.runs:
        record = records[plan.name]
        if record.status is not Status.FINISHED:
            continue
        code = bundle.work.code / plan.code
        entries[f"{CODE}/{plan.code}"], marks[f"{CODE}/{plan.code}"] = code, mark_file(code)
        for role, place in places_of(bundle.work, plan).items():
            for name, mark in record.files.items():
                if name == role or name.startswith(f"{role}/"):
                    path = f"{RUNS}/{plan.name}/{name}"
                    entries[path] = place / name.removeprefix(role).lstrip("/")
                    marks[path] = mark
    text = Results(
        bundle=bundle.digest, suite=bundle.manifest.suite, folder=bundle.manifest.folder,
        runs=tuple(records[plan.name] for plan in bundle.manifest.runs), files=marks,
    ).text().encode()  # fmt: skip
    digest = f"{mark_bytes(text).sha256}\n".encode()
    write_archive(target, {RESULTS_FILE: text, RESULTS_DIGEST: digest, **entries})
    for record in records.values():
        if record.status is Status.FINISHED:
            scratch = bundle.work.job(record.fingerprint)
            shutil.rmtree(scratch.checkpoints, ignore_errors=True)


def _summarise(records: dict[str, Record], results: Path) -> int:
    counts = dict.fromkeys(Status, 0)
    for record in records.values():
        counts[record.status] += 1
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    size = results.stat().st_size / 1e6
    _say(f"{shown}; {results} ({size:.1f} MB), to be taken home: asl-pipe accept {results.name}")
    if counts[Status.INTERRUPTED]:
        _say("the same command goes on from the newest checkpoint")
        return NOT_FINISHED
    if counts[Status.FAILED]:
        return A_RUN_FAILED
    return NOT_FINISHED if counts[Status.WAITING] else DONE


def _ended(where: str, record: Record) -> str:
    seconds = "" if record.seconds is None else f" in {record.seconds:.1f} s"
    return f"{where}: {record.status}{seconds}{f': {record.detail}' if record.detail else ''}"


def _progress(name: str, seen: Progress) -> str:
    if seen.step is None:
        return f"{name}: no step yet"
    total = "" if seen.total_steps is None else f" of {seen.total_steps}"
    loss = "" if seen.loss is None else f", loss {seen.loss:.4g}"
    pace = seen.images_per_s or math.nan
    speed = f", {pace:.0f} images/s" if math.isfinite(pace) else ""
    left = "" if seen.seconds_left is None else f", {seen.seconds_left:.0f} s left"
    return f"{name}: step {seen.step}{total}{loss}{speed}{left}"


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()
