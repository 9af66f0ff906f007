"""The code of a stage: all that it may run, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.results.closure as module_under_test
from asl_core.data.sources.catalogue import DYNAMIC_IMPORTS, find_opener
from pipeline.config.params import SOURCES
from pipeline.errors import UserError
from pipeline.results.closure import (
    Codebase,
    changed_modules,
    closure,
    code_text,
    offenders,
    parse_code_text,
)
from pipeline.results.code import read_code

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.stem for path in (ROOT / "pipeline/stages").glob("[a-z]*.py"))


def names(files: dict[str, bytes], entry: str = "asl_core.run") -> set[str]:
    return set(closure(files, entry)) - {"asl_core", entry}


def refused(
    files: dict[str, bytes], entry: str = "asl_core.run", variant: str | None = None
) -> str:
    with pytest.raises(UserError) as raised:
        closure(files, entry, variant)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- imports

PARTS = {"a": "", "p/__init__": "", "p/b": "", "p/q/__init__": "", "p/q/c": "", "other": ""}


def with_parts(text: str, entry: str = "run", **more: str) -> dict[str, bytes]:
    texts = {"__init__": "", **PARTS, **more, entry: text}
    return {f"asl_core/{name}.py": content.encode() for name, content in texts.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import os, numpy.linalg", ""),
        ("import asl_core", ""),
        ("import asl_core.a", "a"),
        ("import asl_core.p.q.c as x", "p p.q p.q.c"),
        ("from asl_core import a", "a"),
        ("from asl_core import a as x, nothing", "a"),
        ("from asl_core.p.q.c import name", "p p.q p.q.c"),
        ("from asl_core.p.q import c", "p p.q p.q.c"),
        ("from asl_core.p import q", "p p.q"),
        ("from asl_core.p import *", "p p.b p.q"),
        ("from asl_core.a import *", "a"),
        ("def f():\n  async def g():\n    import asl_core.a", "a"),
        ("try: import asl_core.a\nexcept ImportError: import asl_core.other", "a other"),
        ("if TYPE_CHECKING: import asl_core.a", ""),
        ("if TYPE_CHECKING: import asl_core.a\nelse: import asl_core.other", "other"),
        ("if not TYPE_CHECKING: import asl_core.a", "a"),
        ("TYPE_CHECKING = True\nif TYPE_CHECKING: import asl_core.a", "a"),
        ("import asl_core.missing.too", ""),
        ("x = 'import asl_core.a'  # import asl_core.a", ""),
        ("from . import a", "a"),
        ("from .p import b", "p p.b"),
        ("from .p.q.c import d", "p p.q p.q.c"),
        ("import importlib\nimportlib.import_module('asl_core.a')", "a"),
        ("import_module(name='asl_core.p.q.c')", "p p.q p.q.c"),
        ("import_module('.q.c', 'asl_core.p')", "p p.q p.q.c"),
        ("import_module('.a', package=__package__)", "a"),
        ("import_module('numpy')", ""),
        ("from importlib import import_module as load\nload('asl_core' '.a')", "a"),
        ("__import__('asl_core.a')", "a"),
    ],
)
def test_an_import_is_followed_wherever_it_stands(text: str, expected: str) -> None:
    assert names(with_parts(text)) == {f"asl_core.{name}" for name in expected.split()}


@pytest.mark.parametrize(
    ("entry", "text", "expected"),
    [
        ("p/q/d", "from . import c", "p p.q p.q.c"),
        ("p/q/d", "from .. import b", "p p.q p.b"),
        ("p/q/d", "from ...a import x", "p p.q a"),
        ("p/q/d", "from ..b import x", "p p.q p.b"),
        ("p/q/__init__", "from . import c", "p p.q.c"),
        ("p/q/__init__", "from .. import b", "p p.b"),
        ("p/q/__init__", "import_module('.c', __package__)", "p p.q.c"),
    ],
)
def test_relative_imports_start_from_the_package(entry: str, text: str, expected: str) -> None:
    name = "asl_core." + entry.removesuffix("/__init__").replace("/", ".")
    found = names(with_parts(text, entry), name)
    assert found == {f"asl_core.{name}" for name in expected.split()}


@pytest.mark.parametrize(
    "text",
    [
        "importlib.import_module(f'asl_core.{name}')",
        "import_module(name)",
        "import_module('asl_core.' + name)",
        "import_module(*names)",
        "import_module(**names)",
        "import_module('.a', package)",
        "from importlib import import_module as load\nload(name)",
        "map(importlib.import_module, ['asl_core.a'])",
        "load = importlib.import_module",
        "__import__(name)",
        "__import__('a', level=1)",
        "__import__('a', None, None, (), 1)",
    ],
)
def test_a_computed_name_must_be_declared(text: str) -> None:
    line = text.count("\n") + 1
    message = refused(with_parts(text))
    assert message.startswith(
        f"asl_core/run.py:{line}: imports a module whose name is not a literal"
    )
    declared = "DYNAMIC_IMPORTS = {'x': 'asl_core.a'}\n"
    assert names(with_parts(declared + text)) >= {"asl_core.a", "asl_core.run -> x"}


def test_a_module_that_is_not_imported_does_not_count() -> None:
    before, after = with_parts("import asl_core.a"), with_parts("import asl_core.a", other="x = (")
    assert code_text(before, "asl_core.run") == code_text(after, "asl_core.run")


def test_a_change_anywhere_in_the_closure_shows_by_name() -> None:
    def text(**changed: str) -> str:
        parts = {"a": "from asl_core.p.q import c", **changed}
        return code_text(with_parts("import asl_core.a", **parts), "asl_core.run")

    assert changed_modules(text(), text(**{"p/q/c": "x = 1"})) == ["asl_core.p.q.c"]
    assert changed_modules(text(), text(**{"p/__init__": "x = 1"})) == ["asl_core.p"]
    assert changed_modules(text(), text(**{"p/q/c": "# x = 1"})) == []
    assert changed_modules(text(), text(a="")) == [
        "asl_core.a", "asl_core.p", "asl_core.p.q", "asl_core.p.q.c",
    ]  # fmt: skip


def test_imports_in_a_circle_end() -> None:
    files = with_parts("import asl_core.a", a="import asl_core.other", other="import asl_core.run")
    assert names(files) == {"asl_core.a", "asl_core.other"}


def test_a_package_needs_no_init_and_hides_a_module() -> None:
    files = with_parts("import asl_core.n.m", **{"n/m": "x = 1"})
    assert names(files) == {"asl_core.n.m"}
    hidden = files | {"asl_core/n/m/__init__.py": b"x = 2"}
    assert closure(files, "asl_core.run") != closure(hidden, "asl_core.run")
    assert closure(hidden, "asl_core.run") == closure(
        hidden | {"asl_core/n/m.py": b"x = 3"}, "asl_core.run"
    )


def test_what_is_wrong_is_said_in_one_line() -> None:
    assert refused({}) == "there is no module asl_core.run in asl_core or pipeline"
    assert refused(with_parts("\n\nx = (")).startswith("asl_core/run.py:3: ")
    assert refused(with_parts("import asl_core.a", a="x = 1\ny y")).startswith("asl_core/a.py:2: ")
    assert refused(with_parts("\0")).startswith("asl_core/run.py:1: ")
    assert refused({"asl_core/run.py": b"x = '\xff'"}).startswith("asl_core/run.py:1: ")
    assert refused(with_parts("1+" * 100_000 + "1")).startswith(
        "asl_core/run.py:1: nested too deeply"
    )


# --- declared edges

CATALOGUE = """import importlib
DYNAMIC_IMPORTS: dict[str, str | tuple[str, ...]] = {
    "one": "asl_core.a:One",
    "two": "asl_core.p.b:Two",
    "both": ("asl_core.other:Both", "asl_core.a", "asl_core.p.b"),
}
def load(name): return importlib.import_module(DYNAMIC_IMPORTS[name])
"""


def declared(text: str = CATALOGUE, **more: str) -> dict[str, bytes]:
    return with_parts("import asl_core.catalogue", catalogue=text, **more)


def followed(files: dict[str, bytes], variant: str | None) -> set[str]:
    found = set(closure(files, "asl_core.run", variant))
    return {name.removeprefix("asl_core.") for name in found - {"asl_core", "asl_core.run"}}


def test_a_variant_takes_its_own_entry_only() -> None:
    files = declared()
    assert followed(files, "one") == {"catalogue", "catalogue -> one", "a"}
    assert followed(files, "two") == {"catalogue", "catalogue -> two", "p", "p.b"}
    assert followed(files, "both") == {"catalogue", "catalogue -> both", "other", "a", "p", "p.b"}


@pytest.mark.parametrize("variant", [None, "three"])
def test_without_a_known_variant_all_entries_are_taken(variant: str | None) -> None:
    lines = {f"catalogue -> {key}" for key in ("one", "two", "both")}
    assert followed(declared(), variant) == {"catalogue", "a", "p", "p.b", "other"} | lines


def test_another_entry_is_no_change_and_another_value_is() -> None:
    def change(old: str, new: str, variant: str | None = "one") -> list[str]:
        assert old in CATALOGUE
        texts = [
            code_text(declared(text), "asl_core.run", variant)
            for text in (CATALOGUE, CATALOGUE.replace(old, new))
        ]
        return changed_modules(*texts)

    line = '    "two": "asl_core.p.b:Two",\n'
    added = line + '    "three": "asl_core.p:Three",\n'
    assert change(line, added) == change(line, "") == change("    ", " ") == []
    assert change(line, added, None) == ["asl_core.catalogue -> three"]
    assert change("a:One", "a:Three") == ["asl_core.catalogue -> one"]
    assert change('"asl_core.a:One"', '("asl_core.a:One",)') == ["asl_core.catalogue -> one"]
    assert change('"asl_core.a", "asl_core.p.b"', '"asl_core.p.b", "asl_core.a"', "both") == [
        "asl_core.catalogue -> both"
    ]
    assert change("[name]", "[name + '']") == ["asl_core.catalogue"]


WRONG = "asl_core/catalogue.py:2: DYNAMIC_IMPORTS is not a literal dict"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", WRONG),
        ("dict(a='asl_core.a')", WRONG),
        ("{**others}", WRONG),
        ("{name: 'asl_core.a'}", WRONG),
        ("{1: 'asl_core.a'}", WRONG),
        ("{'a': name}", WRONG),
        ("{'a': f'asl_core.{name}'}", WRONG),
        ("{'a': ()}", WRONG),
        ("{'a': ['asl_core.a']}", WRONG),
        ("{'a': ('asl_core.a', 1)}", WRONG),
        ("{'a': 'asl_core.a' for a in b}", WRONG),
        ("{'a': 'asl_core.a', 'a': 'asl_core.a'}", "py:2: DYNAMIC_IMPORTS has 'a' twice"),
        ("{\n'a': 'asl_core.missing:A'}", "py:3: DYNAMIC_IMPORTS names asl_core.missing, which is"),
        ("{'a': 'numpy:array'}", "py:2: DYNAMIC_IMPORTS names numpy, which is not a module"),
        ("{}\nDYNAMIC_IMPORTS = {}", "py:3: DYNAMIC_IMPORTS must be declared once"),
        ("{}\nDYNAMIC_IMPORTS['a'] = 'asl_core.a'", "py:3: DYNAMIC_IMPORTS must be declared once"),
        ("{}\nDYNAMIC_IMPORTS |= {}", "py:3: DYNAMIC_IMPORTS must be declared once"),
        ("{}\ndel DYNAMIC_IMPORTS", "py:3: DYNAMIC_IMPORTS must be declared once"),
        ("{}\nif a:\n  DYNAMIC_IMPORTS = {}", "py:4: DYNAMIC_IMPORTS must be declared once"),
        ("B = {}", "py:2: DYNAMIC_IMPORTS must be declared once"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(value: str, message: str) -> None:
    text = f"\nDYNAMIC_IMPORTS = {value}"
    for variant in (None, "a", "b"):
        assert message in refused(declared(text), variant=variant)


def test_an_empty_table_is_a_declaration() -> None:
    assert followed(declared("DYNAMIC_IMPORTS = {}\nimport_module(name)"), "a") == {"catalogue"}


# --- data


PYTHON_FILES = "p/__init__.py p/b.py p/q/__init__.py p/q/c.py"


def with_data(declaration: str) -> dict[str, bytes]:
    data = ("p/x.yaml", "p/y.yaml", "p/t/a.css", "p/t/u/b.css", "z.yaml")
    files = {f"asl_core/{name}": name.encode() for name in data}
    return files | with_parts("import asl_core.p.b", **{"p/b": f"\nPACKAGE_DATA = {declaration}"})


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("()", ""),
        ("('x.yaml',)", "p/x.yaml"),
        ("('*.yaml',)", "p/x.yaml p/y.yaml"),
        ("('[y-z].yaml', 't/*')", "p/y.yaml p/t/a.css"),
        ("('t/**/*.css',)", "p/t/a.css p/t/u/b.css"),
        ("('**/*.css', '**/x*')", "p/t/a.css p/t/u/b.css p/x.yaml"),
        ("('**/**',)", "p/x.yaml p/y.yaml p/t/a.css p/t/u/b.css " + PYTHON_FILES),
        ("('../z.yaml',)", "z.yaml"),
    ],
)  # fmt: skip
def test_declared_files_count_by_content(declaration: str, expected: str) -> None:
    files = with_data(declaration)
    found = {name for name in closure(files, "asl_core.run") if "/" in name}
    assert found == {f"asl_core/{name}" for name in expected.split()}
    before = code_text(files, "asl_core.run")
    for path in files:
        if path.endswith(("yaml", "css")):
            after = code_text(files | {path: b"changed"}, "asl_core.run")
            assert changed_modules(before, after) == ([path] if path in found else [])


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("('no.yaml',)", "asl_core/p/b.py:2: PACKAGE_DATA names no.yaml, which does not exist"),
        ("('*.css',)", "asl_core/p/b.py:2: PACKAGE_DATA names *.css, which does not exist"),
        ("('X.yaml',)", "asl_core/p/b.py:2: PACKAGE_DATA names X.yaml, which does not exist"),
        ("'x.yaml'", "asl_core/p/b.py:2: PACKAGE_DATA is not a literal tuple"),
        ("['x.yaml']", "asl_core/p/b.py:2: PACKAGE_DATA is not a literal tuple"),
        ("(name,)", "asl_core/p/b.py:2: PACKAGE_DATA is not a literal tuple"),
        (
            "()\nPACKAGE_DATA += ('x.yaml',)",
            "asl_core/p/b.py:3: PACKAGE_DATA must be declared once",
        ),
    ],
)
def test_files_that_cannot_be_found_are_refused(declaration: str, message: str) -> None:
    assert message in refused(with_data(declaration))


# --- text


def test_the_text_is_sorted_lines_whatever_the_order_of_the_files() -> None:
    files = declared() | {"asl_core/x y.txt": b""}
    files["asl_core/a.py"] = b"PACKAGE_DATA = ('x*.txt',)"
    text = code_text(files, "asl_core.run", "one")
    assert text == code_text(dict(reversed(files.items())), "asl_core.run", "one")
    lines = text.splitlines()
    assert text == "\n".join(lines) + "\n"
    assert [line[22:] for line in lines] == [
        "asl_core", "asl_core.a", "asl_core.catalogue", "asl_core.catalogue -> one",
        "asl_core.run", "asl_core/x y.txt",
    ]  # fmt: skip
    assert all(len(line[:20].strip()) == 20 and line[20:22] == "  " for line in lines)
    assert parse_code_text(text) == closure(files, "asl_core.run", "one")


@pytest.mark.parametrize("line", ["", "digest", "digest name", "  name", "digest  "])
def test_a_text_that_is_damaged_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="line 2 of a code file is not a digest and a name"):
        parse_code_text(f"digest  name\n{line}\n")


def test_each_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    parse = module_under_test.parse
    monkeypatch.setattr(
        module_under_test, "parse", lambda source: parsed.append(source) or parse(source)
    )
    files = declared(a="x = 1")
    code = Codebase(files)
    for _ in range(3):
        for variant in (None, "one", "both"):
            code.closure("asl_core.run", variant)
    assert sorted(parsed) == sorted(
        files[f"asl_core/{name}.py"]
        for name in ("__init__", "run", "catalogue", "a", "other", "p/__init__", "p/b")
    )


# --- what a digest of meaning cannot see


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("print(f.__doc__)", "__doc__"),
        ("print(__doc__)", "__doc__"),
        ("getattr(f, '__annotations__')", "__annotations__"),
        ("typing.get_type_hints(f)", "get_type_hints"),
        ("from typing import get_type_hints as g", "get_type_hints"),
        ("inspect.getdoc(f)", "getdoc"),
        ("inspect.getsource(f)", "getsource"),
        ("@functools.singledispatch\ndef f(a: int): 0", "singledispatch"),
        ("torch.jit.script(f)", "torch.jit.script"),
        ("from torch import jit\n@jit.script\ndef f(): 0", "torch.jit.script"),
        ("from torch.jit import script", "torch.jit.script"),
        ("Path(__file__)", "__file__"),
    ],
)
def test_what_reads_its_own_text_is_found(text: str, what: str) -> None:
    files = with_parts(f"\n{text}", other="print(__doc__)")
    line = 3 if text.startswith("from torch import jit") else 2
    found = offenders(files, closure(files, "asl_core.run"))
    assert found == [f"asl_core/run.py:{line}: {what}"]


@pytest.mark.parametrize(
    "text", ["sbatch.script()", "script = 1", "'the __doc__ of'", "'''__doc__ '''"]
)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert offenders(with_parts(text), ["asl_core.run", "asl_core.run -> x", "a.yaml"]) == []


# --- this project


@pytest.fixture(scope="module")
def code() -> Codebase:
    return Codebase(read_code(ROOT).files)


def of_stage(code: Codebase, stage: str, variant: str | None = None) -> set[str]:
    return set(code.closure(f"pipeline.stages.{stage}", variant))


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_reads_its_own_text(code: Codebase, stage: str) -> None:
    assert code.offenders(of_stage(code, stage)) == []


def test_a_probe_does_not_depend_on_methods_sources_or_commands(code: Codebase) -> None:
    found = of_stage(code, "linprobe")
    assert {
        "pipeline.stages.linprobe",
        "asl_core.transfer.linprobe",
        "asl_core.modules.encoder",
    } <= found
    others = (
        "asl_core.methods",
        "asl_core.data.sources",
        "asl_core.pretrain",
        "asl_core.transfer.detection",
    )
    assert not [name for name in found if name.startswith((*others, "pipeline.actions"))]


def test_a_prepared_dataset_depends_on_its_own_source(code: Codebase) -> None:
    sources = {name: f"asl_core.data.sources.{name}" for name in SOURCES}
    for name, module in sources.items():
        if name != "union":
            found = of_stage(code, "prepare", name)
            assert found & set(sources.values()) == {module}
    assert sources["coco"] not in of_stage(code, "prepare", "icons")
    assert set(sources.values()) <= of_stage(code, "prepare", "union")
    assert of_stage(code, "prepare") >= of_stage(code, "prepare", "union")


def test_the_report_depends_on_the_paper_and_the_page(code: Codebase) -> None:
    folder = "pipeline/tables"
    assert {
        f"{folder}/paper.yaml", f"{folder}/templates/report.html.j2",
        f"{folder}/templates/report.css",
    } <= of_stage(code, "report")  # fmt: skip


def test_every_file_of_data_is_declared_by_a_module(code: Codebase) -> None:
    data = {path for path in code.files if not path.endswith(".py")}
    declaring = [
        name for name, path in code.modules.items() if b"PACKAGE_DATA =" in code.files[path]
    ]
    assert data <= {path for name in declaring for path in code.closure(name)}


def test_every_source_has_a_row_that_leads_to_an_opener() -> None:
    assert DYNAMIC_IMPORTS.keys() == SOURCES.keys()
    assert all(callable(find_opener(source)) for source in SOURCES)
    plain = [entry for entry in DYNAMIC_IMPORTS.values() if isinstance(entry, str)]
    opened = [entry.partition(":")[0] for entry in plain]
    assert list(DYNAMIC_IMPORTS["union"][1:]) == opened, "a union may have any source as a member"


def test_opening_a_source_imports_no_other() -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from asl_core.data.sources.catalogue import find_opener; find_opener('imagefolder'); "
        "print(*(name for name in sys.modules if name.startswith('asl_core.data.sources.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.rpartition(".")[2] for name in done.stdout.split()}
    assert loaded == {"catalogue", "files", "imagefolder", "listing", "source"}
