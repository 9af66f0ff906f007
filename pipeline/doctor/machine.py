"""What this machine is like: filesystems, links, load, DVC's settings. Leaves nothing behind."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

NETWORK_FILESYSTEMS = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "panfs", "wekafs",
    "pvfs2", "orangefs", "glusterfs", "virtiofs", "9p",
)  # fmt: skip
FICLONE = 0x40049409
"""ioctl that makes a file share another one's blocks."""


@dataclass(frozen=True)
class Filesystem:
    """Where a path lies.

    Attributes:
        kind: As the kernel names it: `ext4`, `nfs4`.
        free_bytes: For this user.
    """

    kind: str
    free_bytes: int

    @property
    def is_shared(self) -> bool:
        """Whether other machines may see it too, as far as its kind says."""
        kind = self.kind.removeprefix("fuse.")
        return any(kind.startswith(name) for name in NETWORK_FILESYSTEMS)


class Machine:
    """The machine on which this process runs."""

    @property
    def cores(self) -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0))

    @property
    def load(self) -> float:
        """Processes that wanted to compute, on average over the last minute."""
        return os.getloadavg()[0]

    def filesystem(self, path: Path) -> Filesystem:
        """Return the filesystem of a folder."""
        path = path.resolve()
        mounts = {
            Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)
        }
        holder = next((p for p in (path, *path.parents) if p in mounts), None)
        kind = "unknown" if holder is None else mounts[holder]
        return Filesystem(kind, shutil.disk_usage(path).free)

    def link_kinds(self, source: Path, target: Path) -> list[str]:
        """Return the kinds of link, as DVC names them, that work between two folders.

        Args:
            source: Folder of the file.
            target: Folder of the link.
        """
        found = []
        with (
            tempfile.NamedTemporaryFile(dir=source, prefix=".asl-doctor-") as original,
            tempfile.TemporaryDirectory(dir=target, prefix=".asl-doctor-") as folder,
        ):
            original.write(b"x")
            original.flush()
            with contextlib.suppress(OSError), open(f"{folder}/reflink", "wb") as clone:
                fcntl.ioctl(clone.fileno(), FICLONE, original.fileno())
                found.append("reflink")
            with contextlib.suppress(OSError):
                os.link(original.name, f"{folder}/hardlink")
                found.append("hardlink")
            with contextlib.suppress(OSError):
                os.symlink(original.name, f"{folder}/symlink")
                found.append("symlink")
        return [*found, "copy"]

    def dvc_settings(self, root: Path) -> dict[str, str]:
        """Return DVC's settings that hold in a project: `cache.type`, `core.hardlink_lock`, ..."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dvc", "config", "--list"],
            cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
        pairs = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return {name.strip(): value.strip() for name, value in pairs}

    def dvc_cache(self, root: Path) -> Path:
        """Return the folder of DVC's cache."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dvc", "cache", "dir"],
            cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return root / (done.stdout.strip() or ".dvc/cache")
