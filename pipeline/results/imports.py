"""What a syntax tree imports, and what in it reads what `pipeline.results.meaning` leaves out."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_IMPORTERS = ("import_module", "__import__")

_READS_TEXT = (
    "__doc__", "__annotations__", "__file__", "get_annotations", "get_type_hints", "getcomments",
    "getdoc", "getfile", "getsource", "getsourcefile", "getsourcelines", "singledispatch",
    "singledispatchmethod", "use_attribute_docstrings", "validate_call",
)  # fmt: skip
"""Names by which a program sees its docstrings, its annotations of functions, or its own text."""
_COMPILES_TEXT = ("script", "script_method")
"""Of torch.jit: they compile source text, annotations included."""


@dataclass(frozen=True)
class Imports:
    """What a module imports.

    Attributes:
        names: Absolute names; of `from a import b` both a and a.b, which may be no module.
        starred: Modules of which everything is imported.
        unknown: Lines that import what only a running program can say.
    """

    names: frozenset[str]
    starred: frozenset[str]
    unknown: tuple[int, ...]


def imported_names(tree: ast.AST, module: str, *, is_package: bool) -> Imports:
    """Return what a module imports, anywhere in it.

    Args:
        tree: Without what does not count.
        module: Its name, from which relative imports start.
        is_package: Whether it is an `__init__.py`.
    """
    package = module if is_package else module.rpartition(".")[0]
    names: set[str] = set()
    starred: set[str] = set()
    importers: set[str] = {*_IMPORTERS}
    nodes = list(ast.walk(tree))
    for node in nodes:
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=base, names=aliases, level=level):
                start = _resolve("." * level + (base or ""), package)
                names.add(start)
                names |= {f"{start}.{alias.name}" for alias in aliases}
                if any(alias.name == "*" for alias in aliases):
                    starred.add(start)
                importers |= {
                    alias.asname for alias in aliases if alias.asname and alias.name in _IMPORTERS
                }
    understood: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.Call) and _is_importer(node.func, importers):
            name = _literal_name(node, package)
            if name is not None:
                names.add(name)
                understood.add(node.func)
    unknown = [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute)
        and _is_importer(node, importers)
        and node not in understood  # computed, or handed on as a value
    ]
    return Imports(frozenset(names), frozenset(starred), tuple(sorted(unknown)))


def _is_importer(node: ast.expr, importers: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in importers
        case ast.Attribute(attr=name):
            return name in _IMPORTERS
    return False


def _literal_name(call: ast.Call, package: str) -> str | None:
    """Return the absolute name that a call of `import_module` imports, if it is written there."""
    if len(call.args) > 4 or any(keyword.arg in ("level", None) for keyword in call.keywords):
        return None  # `__import__` of a relative name, arguments from elsewhere
    given = dict(zip(("name", "package"), call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    match given.get("name"), given.get("package"):
        case ast.Constant(value=str(name)), _ if not name.startswith("."):
            return name
        case ast.Constant(value=str(name)), ast.Constant(value=str(start)):
            return _resolve(name, start)
        case ast.Constant(value=str(name)), ast.Name(id="__package__"):
            return _resolve(name, package)
    return None


def _resolve(name: str, package: str) -> str:
    """Return the absolute form of a name that may begin with dots."""
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if not level:
        return name
    parts = package.split(".")
    start = parts[: len(parts) - level + 1]
    return ".".join([*start, bare] if bare else start)


def dynamic_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Go through the lines that read docstrings, annotations of functions, or source text."""
    found: set[tuple[int, str]] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in _READS_TEXT:
                found.add((node.lineno, name))
            case ast.Constant(value=str(name)) if name in _READS_TEXT:  # getattr(x, "__doc__")
                found.add((node.lineno, name))
            case ast.Attribute(value=ast.Name(id="jit") | ast.Attribute(attr="jit"), attr=name):
                if name in _COMPILES_TEXT:
                    found.add((node.lineno, f"torch.jit.{name}"))
            case ast.ImportFrom(module=module, names=aliases):
                for alias in aliases:
                    if alias.name in _READS_TEXT:
                        found.add((node.lineno, alias.name))
                    if module == "torch.jit" and alias.name in _COMPILES_TEXT:
                        found.add((node.lineno, f"torch.jit.{alias.name}"))
    yield from sorted(found)
