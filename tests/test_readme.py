"""The README's tour, line by line, in one shell; a line `...` stands for any lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
MARK = "==end-of-command=="


def tour() -> list[tuple[str, list[str]]]:
    """The commands of the tour, each with the lines that it should print."""
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            elif line.startswith("> "):  # what the shell asks for more with
                steps[-1] = (f"{steps[-1][0]}\n{line[2:]}", steps[-1][1])
            else:
                steps[-1][1].append(line)
    return steps


def matches(wanted: list[str], printed: list[str]) -> bool:
    """Whether printed lines are as wanted: `...` alone means any lines, within a line any text."""
    if not wanted:
        return not printed
    if wanted[0] == "...":
        return any(matches(wanted[1:], printed[skip:]) for skip in range(len(printed) + 1))
    if not printed:
        return False
    pattern = re.sub(r"([\[\]?*])", r"[\1]", wanted[0]).replace("...", "*")
    return fnmatchcase(printed[0], pattern) and matches(wanted[1:], printed[1:])


def test_the_tour_works_line_by_line(tmp_path: Path) -> None:
    steps = tour()
    assert len(steps) > 25
    script = "\n".join(
        f"{{ {command}\n}} 2>&1 || echo FAILED $?\necho {MARK}" for command, _ in steps
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    environment.pop("SPOOL", None)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = [part.strip("\n").splitlines() for part in ran.stdout.split(MARK)]
    for (command, wanted), lines in zip(steps, printed, strict=False):
        assert matches(wanted, lines), f"$ {command}\nwanted {wanted}\nprinted {lines}"


def test_the_python_of_the_readme_works(tmp_path: Path) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    place = tmp_path / "python"
    code = code.replace("/tmp/my-campaign", str(place))
    start = "spool.wait(tasks"
    run_it = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'spool.cli', '--spool', spool.root, 'launcher',"
        " '--idle-timeout', '0', '--quiet'], check=True)\n"
    )
    code = code.replace(start, run_it + start)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split("\n\n")) >= 10


def test_the_functions_of_the_readme_work(tmp_path: Path) -> None:
    _, code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    start = "campaign = "
    assert start in code
    code = code.replace("/tmp/my-functions", str(tmp_path / "functions"))
    made = code.index("\n", code.index(start)) + 1
    launch = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-m', 'spool.cli', '--spool', campaign.root, 'launcher',"
        " '--idle-timeout', '5', '--quiet'])\n"
    )
    program = tmp_path / "program.py"
    program.write_text(code[:made] + launch + code[made:])
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert int(first) == sum(x * x for x in range(10_000))
    assert sorted(second.strip("[]").split(", ")) == ["49", "64"]


@pytest.mark.parametrize("wanted, printed, same", [
    (["a...", "..."], ["abc", "x", "y"], True),
    (["..."], [], True),
    (["a"], ["b"], False),
    (["a"], ["a", "b"], False),
])  # fmt: skip
def test_the_matcher_can_fail(wanted: list[str], printed: list[str], same: bool) -> None:
    assert matches(wanted, printed) is same
