"""What others need of the store of results: identity, filing, finding again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.results.documents import Document, Hashes


@dataclass(frozen=True)
class Identity:
    """What a stage's result depends on, at one moment.

    Attributes:
        fingerprint: Changes when the command, a tracked parameter, an input or the code does.
        inputs: Path of each input, as dvc.yaml has it, to its content's md5.
        code: The text that stands for its code.
    """

    fingerprint: str
    inputs: Mapping[str, str]
    code: str


@dataclass(frozen=True)
class StageFacts:
    """What DVC and its caches know of a stage of a suite, at one moment.

    Attributes:
        name: `pretrain@asl`.
        document: What the result would be filed under; inputs that do not exist have no hash.
        fingerprint: DVC's key of it; None as long as an input does not exist.
        recipe: See `pipeline.results.documents.recipe_id`.
        upstream: Path of each input that another stage makes -> that stage's name.
        outputs: The result where there is one: path -> {md5, size, nfiles}, all in DVC's cache.
        locked: What dvc.lock says of the stage.
    """

    name: str
    document: Document
    fingerprint: str | None
    recipe: str
    upstream: Mapping[str, str]
    outputs: Hashes | None
    locked: Document | None


@dataclass(frozen=True)
class Filing:
    """A result that is to be filed in DVC's caches.

    Attributes:
        root: Folder that has `.dvc`.
        suite: Folder with dvc.yaml.
        document: What it was made from, all inputs with their hashes.
        outputs: Path of each output, as dvc.yaml has it -> where it lies now.
        code: Folder with the code that made it.
        inputs: Folder with its inputs, at their paths.
        params: The suite's params.yaml as it was.
        scratch: Folder for files that are only needed meanwhile.
    """

    root: Path
    suite: Path
    document: Document
    outputs: Mapping[str, Path]
    code: Path
    inputs: Path
    params: Path
    scratch: Path


class ResultCache(Protocol):
    """Knows the identity of results, and keeps them under it."""

    def identify(self, suite: Path, name: str) -> Identity:
        """Return the identity that the stage `name` (`pretrain@asl`) of a suite has now."""
        ...

    def survey(
        self, suite: Path, names: Sequence[str], anew: Collection[str] = ()
    ) -> dict[str, StageFacts]:
        """Return the facts of stages and of all that they need, in topological order.

        Results of the stages in `anew` are taken for absent.
        """
        ...

    def key(self, document: Document) -> str:
        """Return the fingerprint of a document whose inputs all have hashes."""
        ...

    def find(self, root: Path, fingerprint: str) -> Hashes | None:
        """Return the newest result under a fingerprint if all of it is in the cache."""
        ...

    def holds(self, root: Path, hashes: Hashes) -> bool:
        """Say whether the cache has all these files and folders, whole."""
        ...

    def add(self, root: Path, paths: Mapping[str, Path]) -> Hashes:
        """Put files and folders into the cache and return their hashes under the same names."""
        ...

    def digest(self, root: Path, path: Path) -> str | None:
        """Hash a file or folder anew, whatever is remembered of it; None where there is none."""
        ...

    def link(self, root: Path, hashes: Hashes, target: Path) -> None:
        """Lay files and folders out under `target`, at their paths, from the cache."""
        ...

    def adopt(self, suite: Path, names: Sequence[str]) -> list[str]:
        """Take results of stages over into a suite and its dvc.lock; run nothing.

        Returns:
            Names of those that were taken over.

        Raises:
            OSError: It could not be done; carries why.
        """
        ...

    def file_again(self, suite: Path, document: Document, outputs: Hashes) -> None:
        """File a result that there is under another document too."""
        ...

    def read(self, root: Path, md5: str) -> str | None:
        """Return the text of a file that the cache has by its md5; None where it has not."""
        ...

    def file(self, filing: Filing) -> Hashes:
        """File a result as DVC would have filed it, and return its outputs' hashes."""
        ...


class CodeHistory(Protocol):
    """Knows which code is running."""

    def tags(self, root: Path) -> dict[str, str]:
        """Return the commit, whether the tree differs from it, and a digest of the difference."""
        ...
