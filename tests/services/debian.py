"""Programs that tests need, from Debian's packages."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path


class PackagesError(RuntimeError):
    """Raised when apt-get fails; has the end of what it said."""


def install(*packages: str) -> None:
    """Install packages without starting their services; needs root.

    One process at a time: another test process may install others.

    Raises:
        PackagesError: apt-get failed.
    """
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    with (Path(tempfile.gettempdir()) / "asl-apt-get.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            for attempt in (1, 2):
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=False
                )
                if done.returncode == 0:
                    return
                if attempt == 1:  # package lists may be absent or old
                    update = ["apt-get", "update"]
                    subprocess.run(update, env=environment, capture_output=True, check=False)
            raise PackagesError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
        finally:
            if ours:
                policy.unlink()
