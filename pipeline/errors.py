"""Errors of the pipeline, each with the exit code that `asl-pipe` gives it.

AslPipeError
|-- UserError       2   what the user gave is wrong: a name, a value, a file that is missing
|-- NotFinishedError 75  the result is not there yet; the same command goes on later
|-- SupersededError  75  a newer start of the same run does this work
`-- TrackingError   -   the tracking store cannot be reached; a warning, never a failure

`asl_core.errors` has the ones of the science: InputError gives 2, TrainingError 1,
InterruptedRun 75.
"""


class AslPipeError(Exception):
    """Raised by the pipeline for anything that is shown as one line and not as a traceback."""

    exit_code = 1


class UserError(AslPipeError):
    """Raised when what the user gave is wrong; says what, where and what to do."""

    exit_code = 2


class NotFinishedError(AslPipeError):
    """Raised when there is no result yet and the same command may be tried later."""

    exit_code = 75


class SupersededError(AslPipeError):
    """Raised when a newer start does this work: stop, write nothing."""

    exit_code = 75


class TrackingError(AslPipeError):
    """Raised when the tracking store cannot be reached or refuses; nothing else depends on it."""
