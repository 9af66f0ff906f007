"""DVC's run-cache key of a stage: the one place that knows DVC's private names.

Reads the project and DVC's caches of file hashes; writes only the latter.
"""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.ports import Identity


class DvcCache:
    """Asks DVC itself, so that DVC and the project agree on what is current."""

    def identify(self, suite: Path, name: str) -> Identity:
        """Return the key under which DVC would file the stage's result now.

        Args:
            suite: Folder with dvc.yaml.
            name: Stage name with key, `pretrain@asl`.

        Raises:
            UserError: dvc.yaml has no such stage, or DVC cannot read it.
        """
        # DVC takes 0.3 s to import, and --help does not need it
        from dvc.dvcfile import ProjectFile
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.stage.cache import _get_stage_hash
        from dvc.stage.loader import StageLoader

        try:
            with Repo(str(suite)) as repo:
                file = ProjectFile(repo, str(suite / "dvc.yaml"))
                # not repo.stage.collect: it reads dvc.lock, long in a large suite and not needed
                stage = StageLoader(file, file.contents)[name]
                stage.save_deps()
                inputs = {
                    dep.def_path: str(dep.hash_info.value)
                    for dep in stage.deps
                    if dep.hash_info and dep.hash_info.name == "md5"
                }
                return Identity(_get_stage_hash(stage), inputs)
        except DvcException as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{name} of {suite / 'dvc.yaml'}: {reason}; see what `dvc status {name}` says"
            ) from error
