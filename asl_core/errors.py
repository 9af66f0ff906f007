"""Errors that a person can act on.

AslCoreError
|-- InputError        what the user gave is wrong: a value, a path, a file, a checkpoint
|-- TrainingError     the run itself went wrong: a loss that is not finite
|-- InterruptedRun    a signal stopped the run at a checkpoint; it can go on
`-- ReplayFinished    a replay has computed the steps that it was to compute; nothing is wrong

Each message is one line: what, where, what to do. `pipeline` maps them to exit codes.
"""


class AslCoreError(Exception):
    """Raised by asl_core for anything a caller may want to show as one line."""


class InputError(AslCoreError):
    """Raised when a value, a path, a file or a checkpoint of the user is wrong."""


class TrainingError(AslCoreError):
    """Raised when training cannot go on, for instance on a loss that is not finite."""


class InterruptedRun(AslCoreError):
    """Raised when a signal stopped a run at a checkpoint from which it can go on."""


class ReplayFinished(AslCoreError):  # an end, and no error
    """Raised when a replay has come to its last step, instead of training to the end."""
