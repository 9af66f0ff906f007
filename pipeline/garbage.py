"""Python's garbage collector while a program starts and ends.

Importing torch and its like makes a million objects that stay. Looking through them again and again
takes a third of the start, and once more of the exit.
"""

import gc

_WHILE_STARTING = 100_000
_USUAL = (700, 10, 10)
"""New objects, and younger collections, after which Python 3.11 and 3.12 look by themselves."""


def collect_rarely() -> None:
    """Look for garbage rarely, while a program of ours starts."""
    gc.set_threshold(_WHILE_STARTING)


def collect_as_usual() -> None:
    """Leave what is loaded alone, and look for garbage as usual: tensors may be among it.

    Of use after `collect_rarely` alone: who imports the stages into a program of their own has
    their own objects there.
    """
    if gc.get_threshold()[0] == _WHILE_STARTING:
        gc.freeze()
        gc.set_threshold(*_USUAL)


def leave_garbage() -> None:
    """Look no more: the program ends."""
    gc.freeze()
