"""Downloads that go on where they stopped, and end with the right file or none."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from pipeline.errors import UserError

_CHUNK = 2**20
_ATTEMPTS = 5
_TIMEOUT = 60.0  # seconds without a byte
_PAUSE = 2.0  # seconds before the second attempt, doubled for each further one
_REST, _NOTHING_LEFT = 206, 416  # HTTP: part of a file; no such part
_BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError)


def download(url: str, folder: Path, digest: str | None) -> Path:
    """Return the file of an address in a folder; it is fetched unless it is there.

    A connection that breaks is taken up again where it broke, by this call or by a later one.

    Args:
        url: http, https or file.
        folder: To put it into, under the last part of its address.
        digest: See `check_digest`.

    Raises:
        UserError: It cannot be reached or written, or other bytes came; says what to do.
    """
    target = folder / url.rpartition("/")[2]
    part = target.with_name(f"{target.name}.part")
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(url, part)
        except OSError as error:
            if isinstance(error, _BROKEN):
                raise _unreachable(url, target, error) from error
            raise UserError(f"{part} cannot be written ({error.strerror or error}); make room "
                            "or make it writable, and run this again") from error  # fmt: skip
        try:
            check_digest(part, digest)
        except UserError:
            part.unlink()  # to go on from wrong bytes would never end right
            raise
        os.replace(part, target)
    check_digest(target, digest)
    return target


def check_digest(path: Path, digest: str | None) -> None:
    """Refuse a file whose digest does not begin as it should.

    Args:
        path: The file.
        digest: `md5:` or `sha256:` and the first hexadecimal digits; None: any file is right.

    Raises:
        UserError: It is another file.
    """
    if digest is None:
        return
    kind, _, beginning = digest.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if not found.startswith(beginning):
        raise UserError(
            f"{path} has {kind} {found}, the published file's begins with {beginning}: it is "
            "damaged or another file; remove it and fetch it again"
        )


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what is missing of it."""
    broken: Exception = urllib.error.URLError("the connection ended early")
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        try:
            with part.open("ab") as file:
                if _append(url, file):
                    return
        except urllib.error.HTTPError as error:
            error.close()  # its connection
            if error.code == _NOTHING_LEFT and part.stat().st_size:
                return
            if error.code < http.client.INTERNAL_SERVER_ERROR:
                raise
            broken = error
        except (*_BROKEN, ConnectionError) as error:
            broken = error
    raise broken if isinstance(broken, _BROKEN) else urllib.error.URLError(str(broken))


def _append(url: str, file: BinaryIO) -> bool:
    """Write the rest of a file behind what is there of it; return whether all of it came."""
    begun = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "asl-pipe"} | ({"Range": f"bytes={begun}-"} if begun else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        if begun and answer.status != _REST:  # a server that knows no ranges begins anew
            file.truncate(0)
            begun = 0
        length = _length(answer)
        expected = None if length is None else begun + length
        with tqdm(total=expected, initial=begun, unit="B", unit_scale=True, disable=None,
                  desc=url.rpartition("/")[2]) as bar:  # fmt: skip
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return expected is None or file.tell() >= expected


def _length(answer: Any) -> int | None:
    stated = answer.headers.get("Content-Length")
    return int(stated) if stated and stated.isdigit() else None


def _unreachable(url: str, target: Path, error: Exception) -> UserError:
    reason = getattr(error, "reason", None) or error
    return UserError(
        f"{url} cannot be fetched ({reason}); run this again to go on where it stopped, or bring "
        f"{target.name} here by other means and give its path"
    )
