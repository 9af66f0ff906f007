"""Pages of all settings: every field of every recipe with type, default and docstring."""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, get_args

from asl_core.recipes.catalogue import NOT_TRAINED, RECIPES
from asl_core.recipes.datasets import Member, Union_
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.initialise import Initialise
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.packing import Regions
from asl_core.recipes.published import PUBLISHED
from asl_core.recipes.tokenizers import Tokenizer
from pipeline.config.container import Container
from pipeline.schedulers.local.resources import LocalResources
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.stages.table import DETAILS, EVALUATIONS, STAGES, Stage

FOLDER = "recipes"
TELLS_APART = ("source", "kind", "method")
"""Fields whose one value says which recipe an entry is: the headings have them."""
_CODE = re.compile(r"(`[^`]*`)")


@dataclass(frozen=True)
class Setting:
    """A field of a recipe.

    Attributes:
        name: As params.yaml has it.
        kind: Its type, as the recipe's file has it.
        default: As params.yaml would have it; None: it must be given.
        meaning: Its docstring, that of a base where it has none.
        owner: The class that gave it this default.
    """

    name: str
    kind: str
    default: str | None
    meaning: str
    owner: type


def settings_of(recipe: type) -> list[Setting]:
    """Return all fields of a recipe, in the order of their classes, its own first."""
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(recipe):
        owners = [kind for kind in recipe.__mro__ if field.name in _written(kind)]
        written = [_written(kind)[field.name] for kind in owners]
        meaning = next((docs for _, docs in written if docs), "")
        found[field.name] = Setting(
            field.name, written[0][0], _default(field), meaning, owners[0]
        )  # fmt: skip
    order = list(recipe.__mro__)
    return sorted(found.values(), key=lambda setting: order.index(setting.owner))


def pages() -> Iterator[tuple[str, str]]:
    """Yield all pages: path below docs, Markdown."""
    yield f"{FOLDER}/index.md", _index()
    for name, recipe in {**RECIPES, **NOT_TRAINED}.items():
        yield method_page(name), _method(name, recipe)
    yield f"{FOLDER}/models.md", _models()
    yield (
        f"{FOLDER}/sources.md",
        _page(
            "Sources",
            "An entry of `datasets` names a `source`; what the sources are and what becomes of bad "
            "files: [reference](../reference.md#sources).",
            [*get_args(Member), Union_, Regions],
        ),
    )
    yield (
        f"{FOLDER}/tokenizers.md",
        _page(
            "Tokenizers",
            "An entry of `tokenizers` names a `kind`: [reference](../reference.md#tokenizers).",
            get_args(Tokenizer),
        ),
    )
    yield f"{FOLDER}/evaluations.md", _evaluations()
    yield (
        f"{FOLDER}/resources.md",
        _page(
            "Where stages run",
            "`cluster.yaml`, no part of a result's identity: "
            "[reference](../reference.md#clusteryaml). `local` has the first, the section `slurm` "
            "the second, `pool` the third; `container` of these is the fourth.",
            [Resources, SlurmResources, LocalResources, Container],
        ),
    )
    yield "stages.md", _stages()


def method_page(name: str) -> str:
    """Return the path of a method's page."""
    return f"{FOLDER}/{name}.md"


def method_pages() -> list[str]:
    """Return the paths of the methods' pages, for the navigation."""
    return [method_page(name) for name in (*RECIPES, *NOT_TRAINED)]


def _index() -> str:
    rows = [
        f"| [`{name}`]({name}.md) | {_first_line(sys.modules[recipe.__module__])} |"
        for name, recipe in {**RECIPES, **NOT_TRAINED}.items()
    ]
    return "\n".join(
        [
            "# All settings",
            "",
            "Made from the recipes, the frozen dataclasses of `asl_core/recipes`, when this site "
            "was built: what stands here is what the code does. An entry of `params.yaml` names "
            "what differs from a default; `asl-pipe validate` refuses a key that does not exist.",
            "",
            "[Sizes](models.md) · [sources](sources.md) · [tokenizers](tokenizers.md) · "
            "[evaluations](evaluations.md) · [where stages run](resources.md) · "
            "[stages](../stages.md)",
            "",
            "| `method` | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _method(name: str, recipe: type) -> str:
    lead = [
        f"`method: {name}`. {_text(_first_line(sys.modules[recipe.__module__]))}",
        "",
        f"Code: `{recipe.__module__.replace('.', '/')}.py`, `asl_core/methods/{name}.py`. Beside "
        "its competitors: [methods](../methods.md).",
    ]
    last = [Initialise] if recipe in RECIPES.values() else []
    text = _page(name, "\n".join(lead), [recipe], last=last)
    return text + _published() if recipe is ImportedRecipe else text


def _published() -> str:
    rows = [
        f"| `{name}` | {weights.epochs} | {_text(weights.licence)} | <{weights.page}> |"
        for name, weights in PUBLISHED.items()
    ]
    head = [
        "",
        "## Published weights",
        "",
        "| `published` | epochs | licence | |",
        "|---|---:|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _models() -> str:
    shown = ("image_size", "patch_size", "embed_dim", "depth", "num_heads")
    decoder = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    rows = [
        f"| `{name}` | "
        + " | ".join(str(getattr(vit, field)) for field in (*shown, *decoder))
        + " |"
        for name, vit in MODELS.items()
    ]
    table = [
        "| `model` | image | patch | width | blocks | heads | decoder's width | blocks | heads |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]
    lead = "`model` is one of these names, or a mapping of the fields below."
    return _page("Sizes", "\n".join([lead, "", *table]), [Vit])


def _evaluations() -> str:
    stages = [stage for stage in EVALUATIONS if stage.recipe is not None]
    return _page(
        "Evaluations",
        "A section of `params.yaml` each, with an entry for every experiment that it measures. "
        "Protocols: [methods](../methods.md#how-an-encoder-is-evaluated).",
        [stage.recipe for stage in stages if stage.recipe is not None],
        {stage.recipe: stage.name for stage in stages},
    )


def _stages() -> str:
    rows = [_stage_row(stage) for stage in STAGES.values()]
    return "\n".join(
        [
            "# Stages",
            "",
            "The one table of stages, `pipeline/stages/table.py`. `{key}` is the name of an entry, "
            "`{dataset}` what its field of that name says.",
            "",
            "| stage | section of params.yaml | reads | leaves | compared by |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _stage_row(stage: Stage) -> str:
    reads = "<br>".join(f"`{path}`" for path in stage.inputs.values())
    leaves = "<br>".join(
        f"`{path}`" + (", `.json`" if role == DETAILS and stage.has_metrics else "")
        for role, path in stage.outputs.items()
    )
    headline = "<br>".join(f"{title}, `{name}`" for name, title in stage.headline.items())
    section = "" if stage.section is None else f"`{stage.section}`"
    return f"| `{stage.name}` | {section} | {reads} | {leaves} | {headline} |"


def _page(
    title: str,
    lead: str,
    recipes: Iterable[type],
    names: dict[Any, str] | None = None,
    last: Iterable[type] = (),
) -> str:
    """Return a page of recipes; what several of them inherit stands once, behind them."""
    own, inherited = list(recipes), dict[type, list[Setting]]()
    lines = [f"# {title}", "", lead, ""]
    for recipe in own:
        settings = settings_of(recipe)
        bases = dict.fromkeys(each.owner for each in settings if each.owner is not recipe)
        lines += _section(
            _name(recipe, names), recipe, [s for s in settings if s.owner is recipe], list(bases)
        )
        for setting in settings:
            if setting.owner is not recipe:
                kept = inherited.setdefault(setting.owner, [])
                if setting.name not in {each.name for each in kept}:
                    kept.append(setting)
    for base, settings in inherited.items():
        if base not in own:
            lines += _section(base.__name__, base, settings, [])
    for kind in last:
        lines += _section(kind.__name__, kind, settings_of(kind), [])
    return "\n".join(lines)


def _section(name: str, recipe: type, settings: list[Setting], bases: list[type]) -> Iterator[str]:
    yield f"## {name} {{ #{recipe.__name__.lower()} }}"
    yield ""
    yield _text(_docstring(recipe))
    yield ""
    for setting in settings:
        if setting.name not in TELLS_APART:
            yield from _setting(setting, f"{recipe.__name__.lower()}-{setting.name}")
    if bases:
        links = ", ".join(f"[{base.__name__}](#{base.__name__.lower()})" for base in bases)
        yield f"And the settings of {links}."
        yield ""


def _setting(setting: Setting, anchor: str) -> Iterator[str]:
    default = "required" if setting.default is None else f"default `{setting.default}`"
    yield f"`{setting.name}`{{ #{anchor} }} *{_text(setting.kind)}*, {default}"
    for number, line in enumerate(_text(setting.meaning).splitlines()):
        yield f"{'    ' if number else ':   '}{line}"
    yield ""


def _name(recipe: type, names: dict[Any, str] | None) -> str:
    if names and recipe in names:
        return f"`{names[recipe]}`"
    for field in dataclasses.fields(recipe):
        if field.name in TELLS_APART and isinstance(field.default, str):
            return f"`{field.name}: {field.default}`"
    return recipe.__name__


@cache
def _written(kind: type) -> dict[str, tuple[str, str]]:
    """Return type and docstring of each field as a class's own body has them."""
    module = sys.modules.get(kind.__module__)
    if module is None or not dataclasses.is_dataclass(kind):
        return {}
    tree = ast.parse(inspect.getsource(module))
    body = next(
        node.body for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )  # fmt: skip
    found: dict[str, tuple[str, str]] = {}
    for statement, following in zip(body, [*body[1:], None], strict=True):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation), _:
                docs = ""
                match following:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        docs = inspect.cleandoc(text)
                found[name] = (_kind(annotation), docs)
            case _:
                pass
    return found


def _kind(annotation: ast.expr) -> str:
    """Return a type as a person would write it: the values of a Literal, absent for None."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return " | ".join(part for part in (_kind(left), _kind(right)) if part)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            each = values.elts if isinstance(values, ast.Tuple) else [values]
            return " | ".join(str(ast.literal_eval(value)) for value in each)
        case ast.Constant(value=None):
            return ""
    return ast.unparse(annotation)


def _default(field: "dataclasses.Field[Any]") -> str | None:
    if field.default is not dataclasses.MISSING:
        return _as_yaml(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _as_yaml(field.default_factory())
    return None


def _as_yaml(value: Any) -> str:
    """Return a default as params.yaml would have it."""
    match value:
        case None:
            return "absent"
        case bool():
            return str(value).lower()
        case str():
            return value or '""'
        case tuple() | list():
            return f"[{', '.join(_as_yaml(each) for each in value)}]"
        case Vit():
            return next(name for name, vit in MODELS.items() if vit == value)
        case dict():
            return "{}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (
            f"{field.name}: {_as_yaml(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
        )
        return f"{{{', '.join(parts)}}}"
    return str(value)


def _docstring(recipe: type) -> str:
    return inspect.cleandoc(recipe.__dict__.get("__doc__") or "")


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def _text(text: str) -> str:
    """Return text in which Markdown reads nothing but code between backticks."""
    parts = _CODE.split(text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_<\[\]|#])", r"\\\1", part)
        for part in parts
    )
