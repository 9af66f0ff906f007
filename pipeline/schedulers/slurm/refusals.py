"""Whether sbatch has certainly not handed a job over, from what it says.

Slurm's messages are those of `src/common/slurm_errno.c`; before them sbatch has complaints of its
own, about options, and nothing was sent then. A message that is in neither list, `Unspecified
error` for instance, leaves it open: the queue has to be searched.
"""

import re

_OPEN = re.compile(
    "|".join(
        (
            r"contact slurm controller", r"communication", r"connection", r"unexpected message",
            r"message (send|receive)", r"timed out", r"zero bytes", r"insane message",
            r"header lengths",
            r"credential", r"authentication", r"\btoken\b", r"incompatible versions", r"rate limit",
            r"standby mode", r"internal error", r"unspecified error", r"temporarily", r"try again",
            r"shutting down", r"unexpected missing socket", r"would block",
        )
    ),
    re.IGNORECASE,
)  # fmt: skip
"""The answer was lost, or it is not of the job itself."""

_REFUSED = re.compile(
    "|".join(
        (
            # most of Slurm's own: a value, a right, a limit, a configuration
            r"\binvalid\b", r"\bnot (permitted|supported|available|usable|provided|set)\b",
            r"(permission|access) denied", r"violates", r"exceed(s|ed)\b",
            r"\bunsupported\b", r"can ?not be (satisfied|submitted|zero)", r"\bunavailable\b",
            r"more (processors|ports|threads)", r"not in this partition", r"limit reached",
            r"no partition specified", r"needs to be (provided|specified)", r"not specified",
            r"too long", r"presently disabled", r"submissions disabled", r"is disabled on this",
            r"dependency problem", r"circular job dependency", r"only batch jobs",
            r"reservation is (in use|invalid)", r"ports are in use", r"preemption loop",
            r"breached requested qos", r"in down state", r"duplicate generic", r"heterogeneous job",
            r"environment is missing", r"insufficient (gres|resources)", r"unable to resolve",
            r"unknown association", r"restrictedcorespergpu", r"no eligible clusters",
            r"(lack|do not fit|no suitable|no available nodes|within) .*topology",
            r"no suitable topology", r"nodes lack available", r"error writing script",
            r"unable to load file", r"maintenance reservation",
            # sbatch itself, before it sends anything
            r"(unrecognized|ambiguous|unknown) option", r"option .*requires an argument",
            r"mutually exclusive", r"does not look like a batch script", r"dos line breaks",
            r"script is empty", r"unable to open file",
        )
    ),
    re.IGNORECASE,
)  # fmt: skip

_HEAD = re.compile(r"(batch )?job submission failed: ?", re.IGNORECASE)


def is_refusal(said: str) -> bool:
    """Say whether a job was certainly not taken; whatever else sbatch says, it may have been."""
    text = _HEAD.sub("", said)
    return _OPEN.search(text) is None and _REFUSED.search(text) is not None
