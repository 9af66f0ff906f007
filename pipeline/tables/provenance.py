"""Where each number comes from: one record per stage run, from its journal and dvc.lock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.jobs.journal import Record, points_of, read_records
from pipeline.tables.collect import StageResult, Suite


@dataclass(frozen=True)
class Origin:
    """How one stage run came about, as far as its journal says."""

    result: StageResult
    commit: str
    """Git commit, short, with a trailing + where files differed from it; empty if unrecorded."""
    host: str
    datasets: Mapping[str, str]
    """Dataset and role -> digest."""
    seconds: float | None
    """From the first to the last record of each attempt, summed."""
    attempts: int
    peak_memory_gib: float | None
    """Largest resident memory of the process and its children that the run logged."""
    tags: Mapping[str, str]
    """What else the journal says, the last word of each."""


def origins(suite: Suite) -> list[Origin]:
    """Return the origin of every result that exists, stage by stage."""
    return [origin(suite, result) for result in suite.results.values() if result.state != "missing"]


def origin(suite: Suite, result: StageResult) -> Origin:
    """Return the origin of one result; what its journal does not say stays empty."""
    journal = suite.run_folder(result.stage, result.key) / "journal"
    records = read_records(journal) if journal.is_dir() else []
    tags: dict[str, str] = {}
    for record in records:
        if record.kind == "tags":
            tags |= {name: str(value) for name, value in record.body["values"].items()}
    commit = tags.get("git.commit", "")[:8]
    dirty = tags.get("git.dirty") == "true"
    attempts = {record.attempt for record in records}
    return Origin(
        result=result,
        commit=commit + ("+" if commit and dirty else ""),
        host=next((str(r.body["host"]) for r in records if r.kind == "open"), ""),
        datasets={
            f"{record.body['name']} ({record.body['context']})": str(record.body["digest"])
            for record in records
            if record.kind == "dataset"
        },
        seconds=sum(_duration(records, attempt) for attempt in attempts) if attempts else None,
        attempts=len(attempts),
        peak_memory_gib=_peak_memory(records),
        tags=tags,
    )


def _duration(records: Sequence[Record], attempt: int) -> float:
    times = [record.time_ms for record in records if record.attempt == attempt]
    return (times[-1] - times[0]) / 1000


def _peak_memory(records: Sequence[Record]) -> float | None:
    series = [
        [value for _, value, _ in points]
        for key, points in points_of(list(records)).items()
        if key.startswith("system/") and key.endswith("/process_peak_resident_megabytes")
    ]
    peak_megabytes = max((max(values) for values in series), default=None)
    return None if peak_megabytes is None else peak_megabytes * 1e6 / 2**30
