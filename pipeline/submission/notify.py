"""Tell people how the jobs of a submission ended: by a command, by a webhook, or both.

What is told is one JSON object. Addresses stay in cluster.yaml, secrets in the environment: neither
is written into any record or log.
"""

import http.client
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from pipeline.config.cluster import Notify

TIMEOUT_S = 60.0
TRIES, PAUSE_S = 3, 5.0
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class RunEnd:
    """What became of one run.

    Attributes:
        name: `pretrain@asl`.
        outcome: `SUCCEEDED`, `FAILED`, `LOST`, `waits`, `goes on`.
        job: The scheduler's id of its newest job.
        why: What is known.
        remedy: What to do about it; empty if there is nothing to do.
    """

    name: str
    outcome: str
    job: str = ""
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Message:
    """What people are told.

    Attributes:
        subject: One line.
        text: All of it, to be read; chats show this field of a webhook's message.
        ended: Nothing of the submission waits or runs any more.
        project: Folder of the project.
        suite: `demo`, or the suite's folder.
        runs: All of them.
    """

    subject: str
    text: str
    ended: bool
    project: str
    suite: str
    runs: tuple[RunEnd, ...]


def message_of(project: str, suite: str, runs: Sequence[RunEnd], *, ended: bool) -> Message:
    """Return what there is to say: who needs somebody, first."""
    done = sum(run.outcome == "SUCCEEDED" for run in runs)
    needs = [run for run in runs if run.remedy]
    head = f"{suite}: {done} of {len(runs)} runs succeeded"
    state = "all jobs have ended" if ended else "others go on"
    needy = f"; {len(needs)} need{'s' if len(needs) == 1 else ''} somebody" if needs else ""
    subject = f"{head}{needy}; {state}"
    lines = [f"{run.name}: {run.outcome} {run.why}".rstrip() + f" -> {run.remedy}"
             for run in needs]  # fmt: skip
    lines += [f"{run.name}: {run.outcome} {run.why}".rstrip()
              for run in runs if not run.remedy and run.outcome != "SUCCEEDED"]  # fmt: skip
    text = "\n".join([subject, *lines, project])
    return Message(subject, text, ended, project, suite, tuple(runs))


def tell(
    message: Message,
    notify: Notify,
    environment: Mapping[str, str],
    pause: Callable[[float], None],
) -> list[str]:
    """Tell it to all that cluster.yaml names, and return what went wrong, a line each.

    Args:
        message: What to say.
        notify: To whom.
        environment: Has the secrets that a webhook's address names.
        pause: Waits so many seconds between two tries.
    """
    content = json.dumps(asdict(message)).encode()
    problems: list[str] = []
    if notify.command is not None:
        problems += _run(notify.command, content, environment)
    if notify.webhook is not None:
        problems += _post(notify.webhook, content, environment, pause)
    return problems


def _run(command: str, content: bytes, environment: Mapping[str, str]) -> list[str]:
    try:
        done = subprocess.run(
            ["sh", "-c", command], input=content, capture_output=True, check=False,
            timeout=TIMEOUT_S, env=dict(environment),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [f"notify.command has not ended for {TIMEOUT_S:.0f} s"]
    except OSError as error:
        return [f"notify.command: {error.strerror}"]
    return [] if done.returncode == 0 else [f"notify.command ended with {done.returncode}"]


def _post(
    address: str, content: bytes, environment: Mapping[str, str], pause: Callable[[float], None]
) -> list[str]:
    missing = [name for name in _names_in(address) if not environment.get(name)]
    if missing:
        return [f"notify.webhook: the environment of the job has no {', '.join(missing)}"]
    url = _VARIABLE.sub(lambda match: environment[match[1] or match[2]], address)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ["notify.webhook is no address that begins with http:// or https://"]
    said = ""
    for attempt in range(TRIES):
        if attempt:
            pause(PAUSE_S)
        request = urllib.request.Request(
            url, data=content, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return []
        except urllib.error.HTTPError as error:
            said = f"it answers {error.code}"
            error.close()
            if error.code < 500 and error.code != 429:  # it will not do it the next time either
                break
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            said = getattr(reason, "strerror", None) or type(reason).__name__
    return [f"notify.webhook at {parts.hostname}: {said}"]


def _names_in(address: str) -> list[str]:
    return [match[1] or match[2] for match in _VARIABLE.finditer(address)]
