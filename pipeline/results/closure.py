"""Which modules and data files a stage's code consists of, found without importing any of them.

A module declares what its imports do not show, as literals at its top level:

    DYNAMIC_IMPORTS: key -> "package.module:attribute", or a tuple of several
    PACKAGE_DATA: files beside the module that it reads, `*` and `**` allowed
"""

import ast
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from pipeline.errors import UserError
from pipeline.results.imports import dynamic_uses, imported_names
from pipeline.results.meaning import (
    IMPORTS_TABLE,
    assigned_name,
    digest_tree,
    parse,
    reduce_to_meaning,
    short_digest,
)

PACKAGES = ("asl_core", "pipeline")
DATA_LIST = "PACKAGE_DATA"


@dataclass(frozen=True)
class _Module:
    """What one file says.

    Attributes:
        digest: Of its meaning.
        imports: Modules of the project that it imports by name.
        entries: Key of DYNAMIC_IMPORTS -> digest of the value, modules that it names.
        data: Path of a file that it reads -> digest of the content.
    """

    digest: str
    imports: frozenset[str]
    entries: Mapping[str, tuple[str, tuple[str, ...]]]
    data: Mapping[str, str]


@dataclass(frozen=True)
class Codebase:
    """All files of the project's packages; each is parsed once, and only if a closure needs it.

    Attributes:
        files: Path relative to the root -> content.
    """

    files: Mapping[str, bytes]
    _read: dict[str, _Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def modules(self) -> dict[str, str]:
        """Name of a module -> path of its file; a package hides a module of the same name."""
        paths = [path for path in self.files if path.endswith(".py")]
        paths = [path for path in paths if path.split("/")[0] in PACKAGES]
        return {_module_name(path): path for path in sorted(paths, key=_is_package)}

    def closure(self, entry: str, variant: str | None = None) -> dict[str, str]:
        """Return module or data file -> digest, sorted, of all that a module may run.

        Args:
            entry: Name of the module.
            variant: Key of the tables DYNAMIC_IMPORTS; where a table has it, its other entries
                are left out.

        Raises:
            UserError: There is no such module, a file is no Python, or a declaration is wrong.
        """
        if entry not in self.modules:
            raise UserError(f"there is no module {entry} in {' or '.join(PACKAGES)}")
        found: dict[str, str] = {}
        seen: set[str] = set()
        waiting = [entry]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            waiting += _with_parents(name)  # Python runs the packages around a module first
            if name not in self.modules:  # a folder without __init__.py, an attribute
                continue
            module = self._module(name)
            found[name] = module.digest
            found |= module.data
            waiting += module.imports
            only = [key for key in module.entries if key == variant]
            for key in only or module.entries:
                digest, targets = module.entries[key]
                found[f"{name} -> {key}"] = digest
                waiting += targets
        return dict(sorted(found.items()))

    def code_text(self, entry: str, variant: str | None = None) -> str:
        """Return a closure as text, one line for each name.

        Raises:
            UserError: There is no such module, a file is no Python, or a declaration is wrong.
        """
        lines = (f"{digest}  {name}\n" for name, digest in self.closure(entry, variant).items())
        return "".join(lines)

    def offenders(self, names: Iterable[str]) -> list[str]:
        """Return "path:line: what" for each use of something that `meaning` leaves out.

        Args:
            names: A closure; what is no module in it is passed over.

        Raises:
            UserError: A file is no Python.
        """
        paths = [self.modules[name] for name in sorted(names) if name in self.modules]
        return [
            f"{path}:{line}: {what}"
            for path in paths
            for line, what in dynamic_uses(_parse(path, self.files[path]))
        ]

    def _module(self, name: str) -> _Module:
        if name not in self._read:
            self._read[name] = self._read_module(name, self.modules[name])
        return self._read[name]

    def _read_module(self, name: str, path: str) -> _Module:
        tree = _parse(path, self.files[path])
        declared = _declarations(path, tree)
        entries = _read_entries(path, declared.get(IMPORTS_TABLE), self.modules)
        data = _read_data(path, declared.get(DATA_LIST), self.files)
        reduce_to_meaning(tree)
        found = imported_names(tree, name, is_package=_is_package(path))
        if found.unknown and IMPORTS_TABLE not in declared:
            raise UserError(
                f"{path}:{found.unknown[0]}: imports a module whose name is not a literal; declare "
                f"the candidates in {IMPORTS_TABLE}"
            )
        imports = {known for known in found.names if known.split(".")[0] in PACKAGES}
        for package in found.starred:  # `__all__` may name any module of a package
            imports |= {known for known in self.modules if known.rpartition(".")[0] == package}
        return _Module(
            digest_tree(tree),
            frozenset(imports),
            entries,
            {file: short_digest(self.files[file]) for file in data},
        )


def closure(files: Mapping[str, bytes], entry: str, variant: str | None = None) -> dict[str, str]:
    """Return one closure; see `Codebase.closure`, which reads files once for many.

    Raises:
        UserError: There is no such module, a file is no Python, or a declaration is wrong.
    """
    return Codebase(files).closure(entry, variant)


def code_text(files: Mapping[str, bytes], entry: str, variant: str | None = None) -> str:
    """Return one closure as text; see `Codebase.code_text`.

    Raises:
        UserError: There is no such module, a file is no Python, or a declaration is wrong.
    """
    return Codebase(files).code_text(entry, variant)


def offenders(files: Mapping[str, bytes], names: Iterable[str]) -> list[str]:
    """Return what in a closure reads what `meaning` leaves out; see `Codebase.offenders`.

    Raises:
        UserError: A file is no Python.
    """
    return Codebase(files).offenders(names)


def parse_code_text(text: str) -> dict[str, str]:
    """Return name -> digest of a text that `code_text` wrote.

    Raises:
        UserError: A line is no digest and name.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        digest, gap, name = line.partition("  ")
        if not (digest and gap and name):
            raise UserError(f"line {number} of a code file is not a digest and a name: {line!r}")
        found[name] = digest
    return found


def changed_modules(old: str, new: str) -> list[str]:
    """Return the names that two texts of `code_text` do not have in common, or not alike.

    Raises:
        UserError: A line is no digest and name.
    """
    before, after = parse_code_text(old), parse_code_text(new)
    return sorted({name for name, _ in before.items() ^ after.items()})


# --- names of modules


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _is_package(path: str) -> bool:
    return path.endswith("/__init__.py")


def _with_parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


# --- what a file says


def _parse(path: str, source: bytes) -> ast.Module:
    try:
        return parse(source)
    except SyntaxError as error:
        reason = " ".join(error.msg.split())
        raise UserError(f"{path}:{error.lineno or 1}: {reason}; fix the file") from None


def _declarations(path: str, tree: ast.Module) -> dict[str, ast.expr]:
    """Return the values of the declarations, each a literal of the top level, given once."""
    declared: dict[str, ast.expr] = {}
    targets: set[ast.AST] = set()
    for statement in tree.body:
        name = assigned_name(statement)
        if name in (IMPORTS_TABLE, DATA_LIST) and name not in declared:
            match statement:
                case ast.Assign(targets=[target], value=value):
                    pass
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    pass
                case _:  # `assigned_name` lets no other pass
                    raise AssertionError(name)
            declared[name] = value
            targets.add(target)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) if node not in targets:
                pass
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                pass
            case _:
                continue
        if name in (IMPORTS_TABLE, DATA_LIST):
            raise UserError(
                f"{path}:{node.lineno}: {name} must be declared once, at the top level of its "
                "module, and never changed"
            )
    return declared


def _read_entries(
    path: str, value: ast.expr | None, modules: Collection[str]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return key -> digest of the value, modules that it names."""
    if value is None:
        return {}
    wanted = 'a literal dict of text to "package.module:attribute" or a tuple of those'
    if not isinstance(value, ast.Dict):
        raise UserError(f"{path}:{value.lineno}: {IMPORTS_TABLE} is not {wanted}")
    entries: dict[str, tuple[str, tuple[str, ...]]] = {}
    for key_node, entry_node in zip(value.keys, value.values, strict=True):
        key, entry = _literal(key_node), _literal(entry_node)
        targets = _texts((entry,) if isinstance(entry, str) else entry)
        if not (isinstance(key, str) and targets):
            raise UserError(f"{path}:{entry_node.lineno}: {IMPORTS_TABLE} is not {wanted}")
        if key in entries:
            raise UserError(f"{path}:{entry_node.lineno}: {IMPORTS_TABLE} has {key!r} twice")
        names = tuple(target.partition(":")[0] for target in targets)
        for name in names:
            if name not in modules:
                raise UserError(
                    f"{path}:{entry_node.lineno}: {IMPORTS_TABLE} names {name}, "
                    "which is not a module of this project"
                )
        entries[key] = (short_digest(ascii(entry).encode()), names)
    return entries


def _read_data(path: str, value: ast.expr | None, files: Collection[str]) -> list[str]:
    """Return the paths of the files that the patterns of PACKAGE_DATA mean."""
    if value is None:
        return []
    patterns = _texts(_literal(value))
    if patterns is None:
        raise UserError(f"{path}:{value.lineno}: {DATA_LIST} is not a literal tuple of file names")
    found: list[str] = []
    for pattern in patterns:
        parts = posixpath.normpath(posixpath.join(posixpath.dirname(path), pattern)).split("/")
        matching = [file for file in files if _matches(file.split("/"), parts)]
        if not matching:
            raise UserError(
                f"{path}:{value.lineno}: {DATA_LIST} names {pattern}, which does not exist"
            )
        found += matching
    return found


def _literal(node: ast.expr | None) -> object:
    """Return the value of a literal, None for anything else."""
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return None


def _texts(value: object) -> tuple[str, ...] | None:
    """Return a tuple of texts as it is, None for anything else."""
    if isinstance(value, tuple) and all(isinstance(element, str) for element in value):
        return value
    return None


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Return whether a path fits a pattern, part by part; `**` stands for any folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
