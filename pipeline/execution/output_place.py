"""Where a command is told to write."""

from pathlib import Path

from pipeline.errors import UserError


def refuse_file_in_the_way(folder: Path) -> None:
    """Refuse a folder that cannot be, for it or one above it is a file or a link to nothing.

    Raises:
        UserError: It cannot.
    """
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link that leads nowhere; name a new folder")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; name a new folder")
