"""What was vouched for: results that stand for other code than they were made with.

`runs/<stage>/<key>.vouched.json` lists who looked, when, at how many steps, on what machine, and
both codes. It lies beside the metrics file and is committed with it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from asl_core.wording import counted
from pipeline.errors import UserError
from pipeline.project import suite_folders
from pipeline.writing import write_json


@dataclass(frozen=True, kw_only=True)
class Vouching:
    """One time that a result was found to be what other code would have made.

    Attributes:
        made_under: DVC's key under which the result was filed before.
        filed_under: The key under which it is filed too from then on.
        who: User and host.
        when: Date and time in UTC.
        steps: Optimiser steps that were replayed and are equal bit for bit; 0: it trains none.
        evaluated: Numbers that were computed again from stored weights and are equal exactly.
        device: Where: kind, name, threads, version of torch.
        old_code, new_code: md5 of the texts that stand for both codes.
        changed: Modules in which they differ.
    """

    made_under: str
    filed_under: str
    who: str
    when: str
    steps: int
    evaluated: tuple[str, ...]
    device: str
    old_code: str
    new_code: str
    changed: tuple[str, ...]

    def __str__(self) -> str:
        what = [f"{counted(self.steps, 'step')} replayed, equal bit for bit"] if self.steps else []
        if self.evaluated:
            what.append(f"{', '.join(self.evaluated)} evaluated again, equal")
        return (
            f"{self.when} by {self.who}: {'; '.join(what)}; on {self.device}; "
            f"code {self.old_code[:8]} -> {self.new_code[:8]} ({', '.join(self.changed)}); "
            f"key {self.made_under[:8]} -> {self.filed_under[:8]}"
        )


def vouchings_file(metrics: Path) -> Path:
    """Return where vouchings lie, given a run's metrics file."""
    return metrics.with_suffix(".vouched.json")


def read_vouchings(metrics: Path) -> list[Vouching]:
    """Return a run's vouchings, the first one first; none where there is no file.

    Raises:
        UserError: The file is damaged.
    """
    file = vouchings_file(metrics)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for each in content:
            for name in ("evaluated", "changed"):
                each[name] = tuple(each[name])
        return [Vouching(**each) for each in content]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it with git checkout") from error


def vouchings_of(metrics: Path, fingerprint: str | None) -> list[Vouching]:
    """Return those of the result that was made under this key, the first one first.

    The file may have others: of results made with other settings, before or after.
    """
    keys, found = {fingerprint}, list[Vouching]()
    for each in read_vouchings(metrics):
        if each.made_under in keys:
            keys.add(each.filed_under)
            found.append(each)
    return found


def vouchings_in(root: Path, path: str, fingerprint: str | None) -> list[Vouching]:
    """Return those of a result in all suites: suites that share a run share its result.

    Args:
        root: The project's folder.
        path: The run's metrics file in its suite.
        fingerprint: The key that the result was made under.
    """
    suites = suite_folders(root).values()
    return [each for suite in suites for each in vouchings_of(suite / path, fingerprint)]


def add_vouching(metrics: Path, vouching: Vouching) -> None:
    """Append one to a run's file, in the place of one that had the same result and code."""
    keys = (vouching.made_under, vouching.filed_under)
    others = [x for x in read_vouchings(metrics) if (x.made_under, x.filed_under) != keys]
    write_json(vouchings_file(metrics), [dataclasses.asdict(x) for x in (*others, vouching)])
