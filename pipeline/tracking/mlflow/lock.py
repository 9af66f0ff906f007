"""A lock between processes of one machine that waits, and says so when it has waited enough."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.tracking.port import StoreRefusedError

POLL_SECONDS = 0.05


@contextlib.contextmanager
def tracking_lock(root: Path, seconds: float = 120.0) -> Iterator[None]:
    """Hold the project's tracking lock: one process at a time makes or fills the store.

    Two processes that create MLflow's tables at once leave a database that nobody can open. The
    lock ends with the process that holds it, however that ends.

    Raises:
        StoreRefusedError: Another process still holds it after so many seconds.
    """
    path = root / ".asl" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise StoreRefusedError(
                        f"another process has been writing to MLflow for {seconds:.0f} s ({path})"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield
