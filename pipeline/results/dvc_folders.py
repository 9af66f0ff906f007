"""The folders outside of a project that DVC reads and writes for it."""

from pathlib import Path

from pipeline.errors import UserError


def dvc_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders of DVC's cache, of what it remembers of files, and of its own settings.

    The cache may be anywhere, shared by a group; of settings those of this user and machine.

    Args:
        root: Of the project.

    Raises:
        UserError: DVC cannot open it.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            cache = Path(repo.cache.local.path)
            remembered = Path(repo.site_cache_dir)
    except DvcException as error:
        raise UserError(f"DVC cannot open {root}: {error}") from error
    # <cache>/files/md5: the record of runs lies beside it
    own = cache.parents[1] if cache.parts[-2:] == ("files", "md5") else cache
    settings = (Config.get_dir(level) for level in ("global", "system"))
    return (own, remembered, *(Path(folder) for folder in settings if folder))
