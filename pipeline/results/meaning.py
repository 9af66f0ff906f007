"""What a Python module means, as a short digest: the same for any layout, any comment, any Python.

Not counted: layout, comments, docstrings and other bare strings, `pass`, annotations of functions
and of their local variables, the body of `if TYPE_CHECKING:`, and the table `DYNAMIC_IMPORTS` of
a module (`pipeline.results.closure` follows it). All else counts: order, names, class bodies.

Python 3.11 to 3.13 give one digest, but for what they understand differently: escapes in the format
of a raw f-string, those after its colon.
"""

import ast
import hashlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

DIGITS = 20
IMPORTS_TABLE = "DYNAMIC_IMPORTS"
"""Name by which a module declares what it imports by name; see `pipeline.results.closure`."""

_TYPING = ("typing", "typing_extensions")
_SKIPPED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores")
"""`ctx` follows from the place of a node; `kind` is the u of u"text"; the others are comments."""
_BODIES = ("body", "handlers", "orelse", "finalbody", "cases")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def meaning(source: bytes) -> str:
    """Return the digest of what a module means.

    Raises:
        SyntaxError: It is no Python.
    """
    tree = parse(source)
    reduce_to_meaning(tree)
    return digest_tree(tree)


def short_digest(content: bytes) -> str:
    """Return the first digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def parse(source: bytes) -> ast.Module:
    """Return a module's syntax tree.

    Raises:
        SyntaxError: It is no Python, or nested more deeply than Python itself can read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is the business of whoever runs the module
            return ast.parse(source)
    except ValueError as error:  # how Python 3.11 refuses null bytes
        raise SyntaxError(str(error)) from error
    except (RecursionError, MemoryError) as error:
        raise SyntaxError("nested too deeply") from error


def digest_tree(tree: ast.Module) -> str:
    """Return the digest of a tree from which `reduce_to_meaning` took what does not count."""
    return short_digest("".join(_tokens(tree)).encode("ascii"))


# --- what does not count


def reduce_to_meaning(tree: ast.Module) -> None:
    """Take from a tree, in place, what does not count."""
    trusts_flag = cache(lambda: not _binds_type_checking(tree))  # asked by few modules
    tree.body = [statement for statement in tree.body if not is_dynamic_imports(statement)]
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, in_function = waiting.pop()
        if isinstance(node, _Function):
            _drop_annotations(node)
        if isinstance(node, _Function | ast.ClassDef):
            in_function = not isinstance(node, ast.ClassDef)
        for name in _BODIES:
            body = getattr(node, name, None)
            if isinstance(body, list):  # that of a lambda or of `a if b else c` is an expression
                kept = list(_kept(body, in_function, trusts_flag))
                setattr(node, name, kept)
                waiting += [(child, in_function) for child in kept]


def is_dynamic_imports(statement: ast.stmt) -> bool:
    """Return whether a statement is the plain or annotated assignment of DYNAMIC_IMPORTS."""
    return assigned_name(statement) == IMPORTS_TABLE


def assigned_name(statement: ast.stmt) -> str | None:
    """Return the one name that a plain or annotated assignment gives a value, or None."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            return name
    return None


def _kept(body: list[Any], in_function: bool, trusts_flag: Callable[[], bool]) -> Iterator[ast.AST]:
    """Go through what counts of a list of statements, handlers or cases."""
    waiting = body[::-1]
    while waiting:
        match statement := waiting.pop():
            case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
                continue
            case ast.If(test=test, orelse=orelse) if _is_type_checking(test) and trusts_flag():
                waiting += orelse[::-1]
            case ast.AnnAssign(target=ast.Name(), value=None) if in_function:
                continue
            case ast.AnnAssign(target=target, value=None) if in_function:
                yield _unannotated(target)  # of `f().x: int`, Python evaluates `f()`
            case ast.AnnAssign(target=target, value=ast.expr() as value) if in_function:
                yield ast.Assign(targets=[target], value=value)
            case _:
                yield statement


def _unannotated(target: ast.Name | ast.Attribute | ast.Subscript) -> ast.AnnAssign:
    return ast.AnnAssign(target=target, annotation=ast.Constant(value=None), simple=0)


def _drop_annotations(function: _Function) -> None:
    function.returns = None
    given = function.args
    for argument in (
        *given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg,
    ):  # fmt: skip
        if argument is not None:
            argument.annotation = None


def _is_type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING"):
            return True
        case ast.Attribute(value=ast.Name(id=module), attr="TYPE_CHECKING"):
            return module in _TYPING
    return False


def _binds_type_checking(tree: ast.Module) -> bool:
    """Return whether TYPE_CHECKING, or typing, may be another than the one of `typing`."""
    ours = ("TYPE_CHECKING", *_TYPING)
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, names=names, level=level):
                genuine = level == 0 and module in _TYPING
                for alias in names:
                    if (alias.asname or alias.name) in ours and not (
                        genuine and alias.name == "TYPE_CHECKING"
                    ):
                        return True
            case ast.alias(name=name, asname=str(bound)) if bound in ours and bound != name:
                return True
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in ours:
                return True
            case ast.Attribute(attr="TYPE_CHECKING", ctx=ast.Store()):
                return True
            case ast.alias():
                continue
            case ast.AST(name=name) | ast.AST(rest=name) if name in ours:
                return True  # a function, a class, an exception, a pattern
    return False


# --- one form for all Pythons


def _tokens(tree: ast.AST) -> Iterator[str]:
    """Go through the text of a tree, without recursion: chains of elif are thousands deep."""
    waiting: list[Any] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
            continue
        if isinstance(item, ast.JoinedStr):
            item = ast.JoinedStr(values=_merged(item.values))
        parts: list[Any] = [type(item).__name__, "("]
        for name in _field_names(type(item)):
            parts += _field(item, name, getattr(item, name, None))
        parts.append(")")
        waiting += parts[::-1]


@cache
def _field_names(kind: type[ast.AST]) -> tuple[str, ...]:
    """Return the fields that count, in an order that later Pythons' fields do not disturb."""
    return tuple(sorted(set(kind._fields) - set(_SKIPPED_FIELDS)))


def _field(node: ast.AST, name: str, value: Any) -> list[Any]:
    """Return the text of a field, in which nodes stand for their own text."""
    if isinstance(node, ast.Constant | ast.MatchSingleton):
        return [f"{name}={_constant(value)};"]
    if value is None or value == []:
        return []
    if isinstance(node, ast.FormattedValue) and name == "format_spec" and not _merged(value.values):
        return []  # f"{x:}" is f"{x}", and Pythons differ in what they make of it
    if isinstance(value, list):
        parts: list[Any] = [f"{name}=["]
        for element in value:
            parts += [element if isinstance(element, ast.AST) else ascii(element), ","]
        return [*parts, "];"]
    return [f"{name}=", value if isinstance(value, ast.AST) else ascii(value), ";"]


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string, with texts that follow each other as one."""
    merged: list[ast.expr] = []
    for value in values:
        match value, merged[-1:]:
            case ast.Constant(value=""), _:
                continue
            case ast.Constant(value=str(more)), [ast.Constant(value=str(text))]:
                merged[-1] = ast.Constant(value=text + more)
            case _:
                merged.append(value)
    return merged


def _constant(value: object) -> str:
    """Return a constant as ASCII; which letters `repr` shows depends on Python's Unicode tables."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"int:{value:x}"  # Python refuses to write very long decimals
    return f"{type(value).__name__}:{value!a}"
