"""The house: imports go down, each call and each library has its home, and a start is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent / "spool"
FILES = sorted(HOME.rglob("*.py"))
LONGEST_FILE = 520

FLOORS = (
    ("errors", "units", "config"),
    ("queue",),
    ("launcher", "service", "report"),
    (
        "api",
        "array",
        "array_source",
        "sources",
        "csv_source",
        "template",
        "workflow",
        "calls",
    ),  # fmt: skip
    ("commands",),
    ("cli",),
)
NEIGHBOURS = {"launcher", "service", "report"}
UPWARD = {
    "config": (("spool.queue.layout",), "the settings' file name, since all names stand in layout"),
    "__init__": (
        ("spool.api", "spool.calls.executor", "spool.calls.function", "spool.calls.handles"),
        "the package is the front door: it opens when Spool is asked for",
    ),
}
"""The imports that may go up, each with its reason."""

TREE_CALLS = {
    ("os", name)
    for name in (
        "rename", "renames", "replace", "mkdir", "makedirs", "fsync", "fdatasync", "sync",
        "scandir", "listdir", "link", "symlink", "unlink", "remove", "rmdir", "removedirs",
    )
} | {("shutil", "rmtree")}  # fmt: skip
"""Calls that touch the tree; they stand in queue/files.py, where tests can watch them."""
OTHER_CALLS = {
    ("queue/processes.py", "os", "listdir", '"/proc"'): "the process table",
    ("launcher/nodes.py", "os", "listdir", '"/dev"'): "the GPUs' devices",
    ("launcher/chunk.py", "os", "unlink", "name"): "a runner's own, which knows no spool",
    ("launcher/warm.py", "os", "listdir", '"/proc/self/task"'): "the threads of a zygote",
    ("queue/submit.py", "os", "listdir", "source"): "a user's own folder, given with --dir",
}
"""The exceptions, with what they look at instead of the tree."""

LIBRARIES: dict[str, tuple[str, ...]] = {
    "watchdog": ("queue/watch.py",),
    "psutil": ("launcher/nodes.py",),
    "tabulate": ("report/",),
    "matplotlib": ("report/picture.py",),
    "yaml": ("workflow.py",),
    "click": ("cli.py", "commands/"),
    "portalocker": ("queue/check.py", "service/"),
    "mpi4py": ("launcher/post.py",),
    "cloudpickle": ("launcher/warm.py",),
    "msgspec": ("",),
}
"""Each third-party library and its home; "" is everywhere."""


def home(path: Path) -> str:
    """A file's name inside the package."""
    return str(path.relative_to(HOME))


def module(path: Path) -> str:
    """A file's module."""
    return ".".join(("spool", *path.relative_to(HOME).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


MODULES = {module(path) for path in FILES}


@lru_cache(None)
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or inside a function."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{home(path)}: a relative import hides where it goes"
            assert node.module is not None
            inner = {f"{node.module}.{name.name}" for name in node.names} & MODULES
            yield from inner or {node.module}


def part(name: str) -> str:
    """The part of the house that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def floor(name: str) -> int:
    """The floor of a module; the package itself stands on top of the API."""
    if part(name) == "__init__":
        return 0
    return next(number for number, parts in enumerate(FLOORS) if part(name) in parts)


# -- floors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=home)
def test_a_file_stands_on_a_floor(path: Path) -> None:
    assert floor(module(path)) in range(len(FLOORS))


@pytest.mark.parametrize("path", FILES, ids=home)
def test_imports_only_go_down(path: Path) -> None:
    here = module(path)
    for there in imports(path):
        if part(here) in UPWARD and there in UPWARD[part(here)][0]:
            continue
        if there.partition(".")[0] == "spool":
            assert floor(there) <= floor(here), f"{home(path)} imports {there}, which stands above"


@pytest.mark.parametrize("path", FILES, ids=home)
def test_launcher_service_and_report_never_meet(path: Path) -> None:
    here = part(module(path))
    met = {part(there) for there in imports(path) if there.startswith("spool.")}
    if here in NEIGHBOURS:
        assert not met & (NEIGHBOURS - {here})


def test_the_imports_that_go_up_are_still_needed() -> None:
    for name, (there, _) in UPWARD.items():
        assert set(there) <= set(imports(HOME / f"{name}.py"))


# -- homes ---------------------------------------------------------------------------------------


def tree_calls(path: Path) -> Iterator[tuple[str, str, str]]:
    """(module, name, first argument) of each use of a call that touches the tree."""
    firsts = {
        id(node.func): node.args[0]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and node.args
    }
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in TREE_CALLS:
                first = firsts.get(id(node))
                said = ast.get_source_segment(path.read_text(), first) if first else ""
                yield node.value.id, node.attr, said or ""
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                if (node.module, name.name) in TREE_CALLS:
                    yield str(node.module), name.name, ""


@pytest.mark.parametrize("path", FILES, ids=home)
def test_only_files_touches_the_tree(path: Path) -> None:
    if home(path) == "queue/files.py":
        return
    for library, name, argument in tree_calls(path):
        known = (home(path), library, name, argument) in OTHER_CALLS
        assert known, f"{home(path)}: {library}.{name}({argument}) belongs in queue/files.py"
    assert "pathlib" not in set(imports(path)), f"{home(path)}: pathlib renames and lists unseen"


def test_the_exceptions_still_exist() -> None:
    for where, library, name, argument in OTHER_CALLS:
        assert (library, name, argument) in set(tree_calls(HOME / where))


def test_files_is_where_they_all_are() -> None:
    used = {name for _, name, _ in tree_calls(HOME / "queue/files.py")}
    assert used >= {"rename", "mkdir", "fsync", "listdir", "scandir", "unlink", "link", "rmdir"}


@pytest.mark.parametrize("path", FILES, ids=home)
def test_each_library_stays_at_home(path: Path) -> None:
    for there in imports(path):
        library = there.partition(".")[0]
        if library == "spool" or library in sys.stdlib_module_names:
            continue
        assert library in LIBRARIES, f"{home(path)}: {library} is no declared dependency"
        assert home(path).startswith(LIBRARIES[library]), f"{home(path)} imports {library}"


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=home)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{home(path)} has {lines} lines: two things live in it"


@pytest.mark.parametrize("path", FILES, ids=home)
def test_a_file_opens_with_its_name_and_what_it_is(path: Path) -> None:
    told = ast.get_docstring(parsed(path)) or ""
    name = path.parent.name if path.stem == "__init__" else path.stem
    assert told.startswith(f"{name} - "), f"{home(path)}: {told[:60]!r}"
    assert len(told.splitlines()[0]) > len(f"{name} - ") + 10


# -- a cheap start -------------------------------------------------------------------------------


def loaded(*words: str) -> set[str]:
    """The modules that a fresh Python has loaded at its end."""
    found = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True
    )
    lines = [line for line in found.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_importing_spool_imports_nothing_heavy() -> None:
    modules = loaded("-c", "import spool")
    assert "spool" in modules
    assert not modules & {"click", "msgspec", "tabulate", "watchdog", "psutil", "portalocker"}
    assert not {name for name in modules if name.startswith("spool.")}


def test_a_lone_submission_imports_nothing_it_does_not_need(tmp_path: Path) -> None:
    program = ["-m", "spool.cli", "--spool", str(tmp_path / "s")]
    subprocess.run([sys.executable, *program, "init"], check=True, capture_output=True)
    modules = loaded(*program, "submit", "--", "true")
    assert {"click", "msgspec", "spool.queue.submit"} <= modules
    heavy = {
        "watchdog", "psutil", "tabulate", "portalocker", "ctypes", "tomllib", "hashlib", "csv",
        "subprocess", "asyncio", "socket", "spool.sources", "spool.launcher.loop", "spool.api",
    }  # fmt: skip
    assert not modules & heavy
