"""What a suite reads that nothing in it makes, and that is not on this machine yet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asl_core.recipes.datasets import folders_of
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.published import PUBLISHED
from asl_core.recipes.tokenizers import DalleTokenizer
from pipeline.config.params import Params
from pipeline.execution.inputs import start_file
from pipeline.project import Project, data_root


@dataclass(frozen=True)
class WantedFile:
    """A file or folder that somebody has to bring.

    Attributes:
        where: Where it is looked for.
        readers: Which stages read it.
        how: Where it is to be had, or what to run.
    """

    where: str
    readers: tuple[str, ...]
    how: str


def wanted_files(project: Project, params: Params) -> list[WantedFile]:
    """Return what is missing, each once, in the order of params.yaml."""
    found: dict[str, WantedFile] = {}
    for each in _missing(project, params):
        before = found.get(each.where)
        readers = (*(before.readers if before else ()), *each.readers)
        found[each.where] = WantedFile(each.where, readers, each.how)
    return list(found.values())


def _missing(project: Project, params: Params) -> Iterator[WantedFile]:
    root = data_root(project)
    for key, dataset in params.datasets.items():
        for folder in folders_of(dataset, root):
            if not folder.exists():
                how = "the data set; its terms ask you to get it yourself"
                yield WantedFile(str(folder), (f"prepare@{key}",), how)
    for key, tokenizer in params.tokenizers.items():
        if isinstance(tokenizer, DalleTokenizer) and not tokenizer.file(root).exists():
            how = "the encoder of DALL-E; docs/methods.md, Tokenizers, says how to convert it"
            yield WantedFile(str(tokenizer.file(root)), (f"tokenize@{key}",), how)
    for key, recipe in params.experiments.items():
        if (file := start_file(recipe)) is not None and not (project.suite / file).exists():
            how = "the weights that it begins with; its sha256 is in params.yaml"
            yield WantedFile(str(project.suite / file), (f"pretrain@{key}",), how)
        if not isinstance(recipe, ImportedRecipe):
            continue
        folder = project.suite / recipe.folder
        if not folder.exists():
            yield WantedFile(project.shown(folder), (f"pretrain@{key}",), _how(folder, recipe))


def _how(folder: Path, recipe: ImportedRecipe) -> str:
    if recipe.published is None:
        return f"asl-pipe import-encoder FILE --name {folder.name}"
    weights = PUBLISHED[recipe.published]
    digest = "" if weights.digest is None else f", {weights.digest}..."
    return (
        f"asl-pipe import-encoder --published {recipe.published} "
        f"(fetches {weights.url}{digest}; {weights.licence})"
    )
