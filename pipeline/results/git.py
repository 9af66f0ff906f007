"""Which code is running, asked of git. Reads only."""

import contextlib
import hashlib
import os
import re
import subprocess
from pathlib import Path

from pipeline.errors import UserError

# The pipeline itself rewrites these while it runs; they are no part of the code.
NOT_CODE = (":(exclude,glob)**/dvc.lock", ":(exclude,glob)**/runs/**")


class Git:
    """Asks the command `git`; without it, or outside a repository, there is nothing to say."""

    def tags(self, root: Path) -> dict[str, str]:
        """Return `git.commit`, `git.dirty`, and `git.patch` where the tree is dirty."""
        commit = _git(root, "rev-parse", "HEAD")
        if commit is None:
            return {"git.commit": "none", "git.dirty": "true"}
        status = _git(root, "status", "--porcelain", "--", ".", *NOT_CODE) or b""
        tags = {"git.commit": commit.decode().strip(), "git.dirty": str(bool(status)).lower()}
        if status:
            patch = _git(root, "diff", "--binary", "HEAD", "--", ".", *NOT_CODE) or b""
            new = ("ls-files", "--others", "--exclude-standard", "-z", "--", ".", *NOT_CODE)
            digest = hashlib.sha256(status + patch)
            for name in sorted(filter(None, (_git(root, *new) or b"").split(b"\0"))):
                with contextlib.suppress(OSError):
                    digest.update(name + (root / os.fsdecode(name)).read_bytes())
            tags["git.patch"] = digest.hexdigest()[:12]
        return tags

    def fingerprints(self, root: Path) -> set[str]:
        """Return the fingerprints in the results that branches, tags and the working tree have.

        Raises:
            UserError: There is no git or no repository: nobody says which results are in use.
        """
        refs = _asked(root, "for-each-ref", "--format=%(objectname)").decode().split()
        found: set[str] = set()
        for places in ([], *([ref] for ref in dict.fromkeys(refs))):
            untracked = [] if places else ["--untracked"]
            lines = _asked(
                root, "grep", "-h", "-o", "-E", *untracked, _FINGERPRINT, *places, "--", "*.json"
            )
            found |= {line.split(b'"')[-2].decode() for line in lines.splitlines()}
        return found

    def recorded(self, root: Path) -> set[str]:
        """Return the md5 of all outputs that a dvc.lock names or has named in any commit.

        Of the working tree and of all that a branch, a tag or an experiment of DVC leads to.

        Raises:
            UserError: There is no git or no repository: nobody says what was recorded.
        """
        patches = _asked(
            root, "log", "--all", "--format=", "--patch", "--unified=0", "--no-color",
            "--no-ext-diff", "--text", "--relative", "--", _LOCKS,
        )  # fmt: skip
        lines = [line for line in patches.splitlines() if line.startswith(b"+")]
        lines += _asked(root, "grep", "-h", "--untracked", "md5:", "--", _LOCKS).splitlines()
        found = (_RECORDED.search(line) for line in lines)
        return {match[1].decode() for match in found if match is not None}


_LOCKS = ":(glob)**/dvc.lock"
_RECORDED = re.compile(rb"\bmd5: ([0-9a-f]{32}(?:\.dir)?)$")
_FINGERPRINT = '"fingerprint": *"[0-9a-f]{64}"'
_NOTHING_FOUND = 1
"""Exit code of `git grep`."""


def _git(root: Path, *arguments: str) -> bytes | None:
    """Return what git prints, None where it cannot say."""
    try:
        done = _run(root, arguments)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _asked(root: Path, *arguments: str) -> bytes:
    """Return what git prints; that it finds nothing is an answer, that it fails is none."""
    try:
        done = _run(root, arguments)
    except OSError as error:
        raise UserError(
            f"git: {error.strerror}; it is needed to know which results are in use"
        ) from None
    if done.returncode not in (0, _NOTHING_FOUND):
        said = " ".join(done.stderr.decode(errors="replace").split())
        said = said or f"exit code {done.returncode}"
        raise UserError(f"git in {root}: {said}; it is needed to know which results are in use")
    return done.stdout


def _run(root: Path, arguments: tuple[str, ...]) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
