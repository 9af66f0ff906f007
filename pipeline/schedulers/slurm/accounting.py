"""What `sacct --parsable2` prints, as accounts of starts. Pure.

A line is of a job (`27`, `27_3`) or of one of its steps (`27.batch`, `27.0`), which follow it; with
`--duplicates` each start of a job that was requeued has such lines of its own, the first one first.
"""

import dataclasses
import re
from datetime import datetime

from pipeline.schedulers.port import Account

FIELDS: tuple[str, ...] = (
    "JobID", "State", "Eligible", "Start", "End", "Elapsed", "TotalCPU", "MaxRSS", "NTasks",
    "AllocTRES",
)  # fmt: skip
RUNNING = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "PENDING", "REQUEUED"})

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)[cn]?", re.IGNORECASE)
_CLOCK = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


def read_accounts(said: str) -> list[Account]:
    """Return the starts of jobs that have begun; lines that cannot be read are left out.

    Args:
        said: Lines with the columns of `FIELDS`.
    """
    found: list[Account] = []
    of_steps = False
    for line in said.splitlines():
        cells = line.split("|")
        if len(cells) != len(FIELDS):
            continue
        row = dict(zip(FIELDS, cells, strict=True))
        name, _, step = row["JobID"].partition(".")
        if not step:
            account = _account(row)
            of_steps = account is not None
            if account is not None:
                found.append(account)
        elif of_steps and found[-1].job_id == name:
            found[-1] = _with_step(found[-1], row)
    return found


def _account(row: dict[str, str]) -> Account | None:
    """Return a job's own line; None where it has not begun."""
    began, state = _moment(row["Start"]), row["State"].split(" ")[0].rstrip("+")
    elapsed = _duration(row["Elapsed"])
    if began is None or state == "PENDING":
        return None
    ended = _moment(row["End"])
    if ended is None and elapsed is not None and state not in RUNNING:
        ended = began + elapsed
    tres = dict(item.split("=", 1) for item in row["AllocTRES"].split(",") if "=" in item)
    # `gres/gpu` counts all; `gres/gpu:a100` some of them again
    gpus = _count(tres.get("gres/gpu"))
    typed = [_count(n) or 0 for name, n in tres.items() if name.startswith("gres/gpu:")]
    if gpus is None and typed:  # none named: given none, or the cluster does not count them
        gpus = sum(typed)
    return Account(
        job_id=row["JobID"], state=state, ready=_moment(row["Eligible"]), began=began, ended=ended,
        gpus=gpus, cpus=_count(tres.get("cpu")), cpu_s=_duration(row["TotalCPU"]) or None,
        memory=size_bytes(tres.get("mem", "")),
    )  # fmt: skip


def _with_step(account: Account, row: dict[str, str]) -> Account:
    """Return an account with what a step adds: steps hold the memory, and run side by side."""
    peak = size_bytes(row["MaxRSS"])
    if not peak:  # none, or 0: it ended before anybody had looked
        return account
    peak *= _count(row["NTasks"]) or 1
    return dataclasses.replace(account, memory_peak=max(account.memory_peak or 0.0, peak))


def size_bytes(text: str) -> float | None:
    """Return `3456K` or `1.50G` in bytes; None for what is no size."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _UNITS[match[2].upper()]


def _duration(text: str) -> float | None:
    """Return `2-03:04:05` or `01:02.345` in seconds."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = match.groups()
    return ((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes)) * 60 + float(seconds)


def _moment(text: str) -> float | None:
    """Return seconds since 1970 of such a number, or of a local time; None for `Unknown`."""
    text = text.strip()
    if text.isdigit():
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def columns() -> str:
    """Return the option that asks for the columns."""
    return "--format=" + ",".join(FIELDS)
