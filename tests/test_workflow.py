"""A campaign in one file: parameters times steps, and who waits for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spool import workflow
from spool.errors import SpoolError
from spool.queue import layout
from spool.workflow import WorkflowError

FILE = """
workflow = "g2"
[parameters]
molecule = ["H2O", "CH4"]
temperature = [300, 400]
[defaults]
time_limit = "1h"
data = {"kind" = "{molecule}"}
[[steps]]
name = "optimise"
over = ["molecule"]
data = {"kind" = "{molecule}"}
command = ["optimise", "{molecule}", "${HOME}", "{ print }"]
[[steps]]
name = "md"
after = ["optimise"]
command = "md {molecule} {temperature}"
environment = {"T" = "{temperature}"}
cores_per_rank = 2
[[steps]]
name = "table"
over = []
data = {}
after = ["md", "old.26112215-00-aaaaaaaaaa"]
command = ["table"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.toml"
    path.write_text(FILE)
    return path


def test_every_combination_of_a_step_is_a_task_that_waits_for_its_own(file: Path) -> None:
    tasks = {task.name: task for task in workflow.read(str(file), {})}
    assert list(tasks) == [
        "optimise-H2O", "optimise-CH4", "md-H2O-300", "md-H2O-400", "md-CH4-300", "md-CH4-400",
        "table",
    ]  # fmt: skip
    assert tasks["optimise-CH4"].command == ["optimise", "CH4", "${HOME}", "{ print }"]
    assert tasks["optimise-CH4"].data == {"kind": "CH4", "molecule": "CH4"}
    md = tasks["md-CH4-400"]
    assert (md.command, md.after) == ("md CH4 400", ["optimise-CH4"])
    assert (md.environment, md.cores_per_rank) == ({"T": "400"}, 2)
    assert (md.workflow, md.time_limit, md.data["temperature"]) == ("g2", "1h", 400)
    assert tasks["table"].after == [*list(tasks)[2:6], "old.26112215-00-aaaaaaaaaa"]


def test_parameters_can_be_chosen_and_forms_say_the_same(file: Path, tmp_path: Path) -> None:
    import tomllib

    import yaml

    chosen = {"molecule": ["NH3"], "temperature": ["10"]}
    expected = list(workflow.read(str(file), chosen))
    assert [task.name for task in expected] == ["optimise-NH3", "md-NH3-10", "table"]
    whole = tomllib.loads(FILE)
    for name, text in (("w.json", json.dumps(whole)), ("w.yaml", yaml.safe_dump(whole))):
        (tmp_path / name).write_text(text)
        assert list(workflow.read(str(tmp_path / name), chosen)) == expected


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("[parameters]", "[parametres]", "unknown key 'parametres'"),
        ('["H2O", "CH4"]', '"H2O"', "parameter 'molecule': expected a list"),
        ('["H2O", "CH4"]', "[]", "parameter 'molecule': expected a list"),
        ('["H2O", "CH4"]', '["1", 1]', "a value stands twice"),
        ('name = "md"', 'name = "table"', "two steps are named 'table'"),
        ('name = "md"', 'name = "m d"', "step 2: needs a 'name'"),
        ('over = ["molecule"]', 'over = ["mol"]', "'over' must be a list of parameters"),
        ("md {molecule} {temperature}", "md {mol}", "step 'md': {mol} is no parameter"),
        ("cores_per_rank = 2", "cores_per_rank = 0", "step 'md': key 'cores_per_rank'"),
        ("cores_per_rank = 2", "coers = 0", "step 'md': unknown key 'coers'"),
        ("[defaults]", "[defaults", "w.toml: "),
        ('after = ["optimise"]', 'after = "optimise"', "'after' must be a list"),
    ],
)
def test_a_wrong_file_says_where_and_what(file: Path, before: str, after: str, says: str) -> None:
    file.write_text(FILE.replace(before, after))
    with pytest.raises(WorkflowError) as told:
        list(workflow.read(str(file), {}))
    assert says in str(told.value) and str(told.value).startswith(str(file))


def test_what_cannot_be_read_says_so(tmp_path: Path, file: Path) -> None:
    with pytest.raises(WorkflowError, match="expected .toml, .json"):
        workflow.read(str(file.rename(tmp_path / "w.txt")), {})
    with pytest.raises(WorkflowError, match="No such file"):
        workflow.read(str(tmp_path / "none.toml"), {})
    file = tmp_path / "w.toml"
    file.write_text(FILE)
    with pytest.raises(WorkflowError, match="has no parameter 'x'; it has molecule, temperature"):
        list(workflow.read(str(file), {"x": ["1"]}))


def test_a_script_makes_tasks(tmp_path: Path) -> None:
    script = tmp_path / "w.py"
    script.write_text(
        "def tasks():\n"
        "    for n in range(3):\n"
        "        after = [f'n{n - 1}'] if n else []\n"
        "        yield {'name': f'n{n}', 'command': ['true'], 'after': after}\n"
    )
    assert [task.after for task in workflow.read(str(script), {})] == [[], ["n0"], ["n1"]]
    script.write_text("x = 1\n")
    with pytest.raises(WorkflowError, match=r"defines no function tasks\(\)"):
        list(workflow.read(str(script), {}))


def test_a_workflow_is_submitted_whole_or_not_at_all(command, tree, file: Path) -> None:
    plain = FILE.replace(', "old.26112215-00-aaaaaaaaaa"', "")
    file.write_text(plain)
    plan = command("submit", "--workflow-file", str(file), "--dry-run")
    assert plan.stdout.splitlines()[2].startswith("md-H2O-300  after optimise-H2O  md H2O 300")
    assert list(tree_ids(tree)) == []
    ran = command("submit", "--workflow-file", str(file), "--set", "molecule=H2O")
    ids = ran.stdout.split()
    assert len(ids) == 4 and {layout.parse_id(one).name for one in ids} >= {"table", "optimise-H2O"}
    drawn = command("tree", "--workflow", "g2").stdout
    assert "optimise-H2O" in drawn.splitlines()[0] and drawn.count("table.") == 2
    file.write_text(plain.replace('["md"]', '["mdd"]'))
    refused = command("submit", "--workflow-file", str(file))
    assert refused.returncode == 1 and "there is no task 'mdd'" in refused.stderr
    assert sorted(tree_ids(tree)) == sorted(ids)


def test_a_plan_has_a_line_a_task_however_many_its_command_has(command, tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("[[steps]]\nname = 'a'\ncommand = '''\ncd x &&\n  ./y\n'''\n")
    plan = command("submit", "--workflow-file", str(file), "--dry-run")
    assert plan.stdout == "a  cd x && ./y\n"


def test_the_demo_s_graph_is_sound() -> None:
    path = Path(__file__).parent.parent / "examples" / "g2" / "workflow.toml"
    made = {task.name: task for task in workflow.read(str(path), {})}
    assert len(made) == 37 and len(made["table"].after) == 24
    assert made["energy-C6H6"].after == ["optimise-C6H6"]
    assert "--name rescue-H2O2" in made["optimise-H2O2"].on_timeout


def tree_ids(tree) -> list[str]:
    from spool.queue import tasks
    from spool.queue.layout import State

    return [spot.id for spot in tasks.spots(tree, tuple(State))]


def test_the_errors_are_spool_errors() -> None:
    assert issubclass(WorkflowError, SpoolError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nosuch\n", "w.py: ModuleNotFoundError: No module named 'nosuch'"),
        ("def tasks(:\n", "SyntaxError"),
        ("def tasks():\n    yield {'command': 'true'}\n    boom()\n", "line 3, in tasks"),
    ],
)
def test_a_script_s_own_mistake_is_told_without_our_frames(
    command, tree, tmp_path: Path, text: str, says: str
) -> None:
    script = tmp_path / "w.py"
    script.write_text(text)
    ran = command("submit", "--workflow-file", str(script))
    assert ran.returncode == 1 and says in ran.stderr
    assert "Traceback" not in ran.stderr and "workflow.py" not in ran.stderr
    assert tree_ids(tree) == []


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('["md", ', '["mdd", ', "there is no task 'mdd'"),
        ("", "", "there is no task 'old.26112215-00-aaaaaaaaaa'"),
        ('over = ["molecule"]', 'over = ["molecule"]\nafter = ["md"]', "waits for itself"),
    ],
)
def test_a_plan_tells_what_would_be_refused(
    command, file: Path, before: str, after: str, says: str
) -> None:
    file.write_text(FILE.replace(before, after))
    plan = command("submit", "--workflow-file", str(file), "--dry-run")
    assert plan.returncode == 1 and says in plan.stderr
    assert "nothing would be submitted" in plan.stderr


@pytest.mark.parametrize("words", [("--cores", "2"), ("--tag", "x"), ("--hold",), ("--key", "k")])
def test_what_a_workflow_file_would_not_heed_is_refused(command, tree, file: Path, words) -> None:
    ran = command("submit", "--workflow-file", str(file), *words)
    assert ran.returncode == 2 and f"{words[0]} has no effect on --workflow-file" in ran.stderr
    assert tree_ids(tree) == []
