"""The digest of a module follows what it does, whatever it looks like and whoever reads it."""

import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.results.meaning import meaning

ROOT = Path(__file__).parents[2]
SYNTAX = Path(__file__).with_name("syntax_of_3_11.txt")

PRINT_DIGESTS = """
import sys
from pathlib import Path
from pipeline.results.meaning import meaning
for path in sys.stdin.read().splitlines():
    print(meaning(Path(path).read_bytes()))
"""


def of(text: str) -> str:
    return meaning(text.encode())


def in_function(*lines: str) -> str:
    return "def f(a):\n" + "".join(f"    {line}\n" for line in lines)


def in_class(*lines: str) -> str:
    return in_function(*lines).replace("def f(a)", "class C")


SAME = {
    "a comment": ("x = 1", "# why\nx = 1  # what"),
    "layout": ("x = f(a, b)\ny = (1)", "x = f(\n    a,\n\n    b,\n)\n\n\ny = 1;"),
    "line ends": ("if a:\n    b\n", "if a:\r\n    b\r\n"),
    "quotes": ("x = 'a\\x41'", 'x = """aA"""'),
    "u": ("x = u'a'", "x = 'a'"),
    "how a number is written": ("x = 16, 0.5, 1000", "x = 0x10, 5e-1, 1_000"),
    "a mark of the byte order": ("x = 1", "\ufeffx = 1"),
    "a docstring of a module": ("x = 1", '"""Text."""\nx = 1'),
    "a docstring of a function": (in_function("return 1"), in_function("'''Text.'''", "return 1")),
    "a function of nothing": (in_function("'''Text.'''"), in_function("pass")),
    "a docstring of a class": (in_class("x = 1"), in_class("'''Text.'''", "x = 1")),
    "a docstring of an attribute": (in_class("x: int"), in_class("x: int", "'''Text.'''")),
    "a bare string in a branch": ("if a:\n  x", "if a:\n  x\n  'text'"),
    "pass": ("try: a\nexcept b: pass\nelse: pass", "try: a\nexcept b: 'text'"),
    "an annotation of an argument": (
        "def f(a, *b, c=1, **d): 0",
        "def f(a: A, *b: B, c: C = 1, **d: D): 0",
    ),
    "an annotation of a positional argument": ("def f(a, /): 0", "def f(a: A, /): 0"),
    "an annotation of a result": ("async def f(): 0", "async def f() -> list[int]: 0"),
    "an annotation of a local variable": (in_function("x = 1"), in_function("x: int = 1")),
    "an annotation of an attribute in a function": (
        in_function("a.x = 1"),
        in_function("a.x: int = 1"),
    ),
    "a bare annotation in a function": (in_function("x = 1"), in_function("x: int", "x = 1")),
    "an annotation in a branch of a function": (
        in_function("if a:", "  x: int = 1"),
        in_function("if a:", "  x = 1"),
    ),
    "an annotation in a method": (
        in_class("def f(self):", "  x: int = 1"),
        in_class("def f(self):", "  x = 1"),
    ),
    "the table of dynamic imports": ("x = 1", "DYNAMIC_IMPORTS = {'a': 'b'}\nx = 1"),
    "the annotated table": ("x = 1", "x = 1\nDYNAMIC_IMPORTS: dict[str, str] = {'a': 'b'}"),
    "imports for types": ("x = 1", "if TYPE_CHECKING:\n  import a\nx = 1"),
    "imports for types by the full name": (
        "import typing",
        "import typing\nif typing.TYPE_CHECKING: import a",
    ),
    "what is done without types": ("if TYPE_CHECKING: a\nelse: b", "b"),
    "types after a condition": ("if a: b\nelif TYPE_CHECKING: c\nelse: d", "if a: b\nelse: d"),
    "types in types": ("if TYPE_CHECKING: a\nelif TYPE_CHECKING: b\nelse: c", "c"),
    "types in a function": (in_function("x"), in_function("if TYPE_CHECKING: import b", "x")),
    "an f-string in parts": ("x = f'a{b}c'", "x = 'a' f'{b}' f'' 'c'"),
    "an empty format": ("x = f'{a}'", "x = f'{a:}'"),
}


@pytest.mark.parametrize("case", SAME)
def test_what_changes_nothing_leaves_the_digest(case: str) -> None:
    one, other = SAME[case]
    assert of(one) == of(other)


OPERATORS = (
    "+", "-", "*", "/", "//", "%", "**", "@", "<<", ">>", "&", "|", "^", "<", ">", "<=", ">=",
    "==", "!=", "is", "is not", "in", "not in", "and", "or",
)  # fmt: skip
PATTERNS = (
    "None", "True", "1", "-1", "'a'", "c", "_", "c.d", "[c]", "[*c]", "[*_]", "{}", "{1: c}",
    "{**c}", "C()", "C(c)", "C(c=c)", "1 | 2", "1 as c", "c if c",
)  # fmt: skip

DIFFERENT = {
    "a value": ("x = 1", "x = 2"),
    "kinds of numbers": ("x = 1", "x = 1.0", "x = True", "x = 1j", "x = '1'", "x = b'1'"),
    "kinds of nothing": (
        "x = None",
        "x = ...",
        "x = ''",
        "x = b''",
        "x = ()",
        "x = []",
        "x = {}",
        "x: None",
    ),
    "signs of zero": ("x = 0", "x = -0", "x = 0.0", "x = -0.0", "x = 0j"),
    "large numbers": ("x = 1e999", "x = -1e999", "x = 1e308", "x = 1e999j", "x = inf"),
    "long numbers": (f"x = 0x{'9' * 5000}", f"x = 0x{'9' * 4999}8"),
    "close numbers": ("x = 0.1", "x = 0.10000000000000002"),
    "texts like numbers": ("x = 'int:1'", "x = int"),
    "texts like nodes": ("x = 'a'", "x = a", "x = \"'a'\"", "x = 'Name(id=a)'"),
    "letters": ("x = 'é'", "x = 'e\u0301'", "x = '\\\\xe9'", "x = '\\ud800'", "x = '\U0001f600'"),
    "a name": ("x = 1", "y = 1"),
    "a local name": (in_function("x = 1"), in_function("y = 1")),
    "order": ("a\nb", "b\na"),
    "order of keys": ("x = {'a': 1, 'b': 2}", "x = {'b': 2, 'a': 1}"),
    "grouping": ("x = a - b - c", "x = a - (b - c)"),
    "grouping of comparisons": ("x = a < b < c", "x = (a < b) < c", "x = a < b and b < c"),
    "what is kept in a tuple": ("x = (a)", "x = (a,)", "x = [a]", "x = {a}"),
    "nesting": ("if a:\n  b\nc", "if a:\n  b\n  c", "if a:\n  b\nelse:\n  c"),
    "loops": ("for a in b: c", "for a in b: c\nelse: d", "async_ = 1", "while a: b"),
    "which branch": ("if a: b", "if a: pass\nelse: b"),
    "a decorator": ("def f(): 0", "@d\ndef f(): 0", "@d()\ndef f(): 0", "@d\n@d\ndef f(): 0"),
    "async": ("def f(): 0", "async def f(): 0"),
    "a default": ("def f(a): 0", "def f(a=1): 0", "def f(a=None): 0", "def f(*, a=None): 0"),
    "which default": ("def f(*, a, b=1): 0", "def f(*, a=1, b): 0"),
    "kinds of arguments": (
        "def f(a, b): 0",
        "def f(a, /, b): 0",
        "def f(a, *, b): 0",
        "def f(a, *b): 0",
        "def f(a, **b): 0",
    ),
    "a lambda's default": ("x = lambda a: 0", "x = lambda a=1: 0"),
    "what a future import does": ("x: a", "from __future__ import annotations\nx: a"),
    "an import": (
        "import a",
        "import a.b",
        "import a as b",
        "from a import a",
        "from .a import a",
        "from ..a import a",
        "from a import *",
    ),
    "a field of a class": (
        in_class("x: int"),
        in_class("x: str"),
        in_class("x: int = 1"),
        in_class("x = 1"),
        in_class("pass"),
    ),
    "order of fields": (in_class("x: int", "y: int"), in_class("y: int", "x: int")),
    "a field of a class in a function": (
        in_function("class C:", "  x: int"),
        in_function("class C:", "  x: str"),
    ),
    "an annotation of a module": ("x: int = 1", "x: str = 1", "x = 1"),
    "brackets around an annotated name": ("x: int", "(x): int"),
    "what annotating an attribute evaluates": (
        in_function("f().x: int"),
        in_function("f().x"),
        in_function("pass"),
    ),
    "another table": ("X = {'a': 'b'}", "X = {'a': 'c'}"),
    "a table that is no declaration": (
        in_function("DYNAMIC_IMPORTS = 1"),
        in_function("DYNAMIC_IMPORTS = 2"),
    ),
    "a second name of the table": ("X = DYNAMIC_IMPORTS = {}", "DYNAMIC_IMPORTS = {}"),
    "what is done unless for types": ("if not TYPE_CHECKING: a", "if not TYPE_CHECKING: b"),
    "a flag of one's own": (
        "TYPE_CHECKING = 1\nif TYPE_CHECKING: a",
        "TYPE_CHECKING = 1\nif TYPE_CHECKING: b",
    ),
    "another's flag": (
        "from a import TYPE_CHECKING\nif TYPE_CHECKING: a",
        "from a import TYPE_CHECKING\nif TYPE_CHECKING: b",
    ),
    "another's typing": (
        "import a as typing\nif typing.TYPE_CHECKING: a",
        "import a as typing\nif typing.TYPE_CHECKING: b",
    ),
    "a local flag": (
        "def f(TYPE_CHECKING):\n  if TYPE_CHECKING: a",
        "def f(TYPE_CHECKING):\n  if TYPE_CHECKING: b",
    ),
    "a flag that is set from outside": (
        "typing.TYPE_CHECKING = 1\nif TYPE_CHECKING: a",
        "typing.TYPE_CHECKING = 1",
    ),
    "a flag that is caught": (
        "try: a\nexcept B as TYPE_CHECKING:\n  if TYPE_CHECKING: a",
        "try: a\nexcept B as TYPE_CHECKING:\n  if TYPE_CHECKING: b",
    ),
    "another module's flag": ("if a.TYPE_CHECKING: a", "if a.TYPE_CHECKING: b"),
    "a conversion": ("x = f'{a}'", "x = f'{a!r}'", "x = f'{a!s}'", "x = f'{a!a}'", "x = f'{a=}'"),
    "a format": ("x = f'{a:1}'", "x = f'{a:2}'", "x = f'{a:{b}}'", "x = f'{a}:1'"),
    "an f-string and a string": ("x = f'{{a}}'", "x = '{a}'", "x = f'{a}'"),
    "an f-string that stands alone": ("f'{a()}'", "pass"),
    "bytes that stand alone": ("b'a'", "pass"),
    "an ellipsis": (in_function("..."), in_function("pass")),
    "a walrus": ("(a := 1)", "a = 1", "a == 1"),
    "a star": ("f(a)", "f(*a)", "f(**a)", "f(a=a)"),
    "an index": ("a[b, c]", "a[b:c]", "a[b::c]", "a[:b:c]", "a[b:c:None]", "a[*b, c]"),
    "which exceptions": (
        "try: a\nexcept B: c",
        "try: a\nexcept* B: c",
        "try: a\nexcept (B,): c",
        "try: a\nexcept: c",
    ),
    "a scope": (in_function("global b", "b = 1"), in_function("b = 1")),
    "another scope": (
        in_function("def g():", "  nonlocal a", "  a = 1"),
        in_function("def g():", "  global a", "  a = 1"),
    ),
    "yielding": (
        in_function("yield a"),
        in_function("yield from a"),
        in_function("return a"),
        in_function("yield"),
    ),
    "a comprehension": (
        "[a for a in b]",
        "{a for a in b}",
        "(a for a in b)",
        "[a for a in b if a]",
        "[a async for a in b]",
    ),
    "a pattern": tuple(f"match a:\n  case {pattern}: b" for pattern in PATTERNS),
    "an operator": tuple(f"a {sign} b" for sign in OPERATORS),
    "what is deleted or stored": ("del a", "a", "a = a", "a += a"),
    "a type": ("def f(a=int): 0", "def f(a=str): 0"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_changes_something_changes_the_digest(case: str) -> None:
    for one, other in combinations(DIFFERENT[case], 2):
        assert of(one) != of(other), (one, other)


def test_the_encoding_counts_by_the_letters_it_gives() -> None:
    latin, utf8 = "# coding: latin-1\nx = 'é'".encode("latin-1"), "x = 'é'".encode()
    assert meaning(latin) == meaning(utf8)
    assert meaning(b"# coding: latin-1\n" + utf8) != meaning(utf8)


@pytest.mark.parametrize(
    "text",
    [
        "if a: b\n" + "elif a: b\n" * 900,
        "x = 1" + " + 1" * 900,
        "x = a" + ".a" * 900,
        "x = " + "not " * 500 + "a",
        "if TYPE_CHECKING: a\n" + "elif TYPE_CHECKING: a\n" * 900 + "else: b",
    ],
    ids=["elif", "sum", "attributes", "not", "types"],
)
def test_depth_is_no_obstacle(text: str) -> None:
    assert of(text) != of(text.replace("b", "c").replace("a", "c").replace("1", "2"))


@pytest.mark.parametrize("source", [b"x = ", b"\0", b"\xff", b"x = " + b"9" * 5000, b"1+" * 10**5])
def test_what_is_no_python_is_refused_in_one_way(source: bytes) -> None:
    with pytest.raises(SyntaxError):
        meaning(source)


def test_a_digest_is_short() -> None:
    assert len(of("")) == 20
    assert set(of("x")) <= set("0123456789abcdef")


PINNED = {
    "": "ad2e13b69c4fc1fda464",
    "x = f'a{b!r:>{c}}' 'd' f'{e=}'": "84dd3dad802f3bce6cb6",
    "x = -0.0, 1e999, 2j, 0xff, b'\\xff', 'é\\ud800', ..., None, True": "7f04588cbfe4b7a2813c",
    "def f(a, /, b: int = 1, *c, d, e=2) -> int: return lambda: (yield)": "8f6e7d4a59a37561158d",
    "match a:\n  case {'b': [c, *_], **d} | C(e, f=-1) as g if g: pass": "c03a01d5fac084187c7c",
    "try: a\nexcept* B as c: d\nfinally: [x async for x, *y in z if x]": "07d8cfbee7d76f49fd33",
    "class C(D, metaclass=M):\n  x: int\n  y: 'str' = f(*a, b=1)[1:2, ...]": "72abfd8e3807ff63a982",
}
"""Digests from Python 3.11; those of each later one must be the same."""


@pytest.mark.parametrize("text", PINNED)
def test_digests_are_what_they_always_were(text: str) -> None:
    assert of(text) == PINNED[text]


def test_the_digest_of_all_syntax_is_what_it_always_was() -> None:
    assert meaning(SYNTAX.read_bytes()) == "4f2fef1f3d19dffaa8be"


VERSIONS = ("3.11", "3.12", "3.13")


def pythons() -> list[str]:
    """Return the interpreters of this machine that the project supports, this one first."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [shutil.which(f"python{version}") for version in VERSIONS]
    found = [str(path) for v in VERSIONS for path in sorted(kept.glob(f"{v}.*/bin/python"))]
    found += [name for name in named if name is not None]
    # a name may stand for a version that is not installed
    works = [x for x in found if not subprocess.run([x, "-c", ""], capture_output=True).returncode]
    return [sys.executable, *works]


def test_every_python_here_gives_the_same_digests() -> None:
    folders = ("asl_core", "pipeline", "tests", "benchmarks")
    paths = [SYNTAX, *(path for name in folders for path in sorted((ROOT / name).rglob("*.py")))]
    digests = [meaning(path.read_bytes()) for path in paths]
    for other in pythons():
        done = subprocess.run(
            [other, "-c", PRINT_DIGESTS], cwd=ROOT, input="\n".join(map(str, paths)),
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == digests, other
