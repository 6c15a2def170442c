"""Which tasks are meant: words, states and filters over a small real tree, and strange names."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator

import pytest
from conftest import make_tree, where
from hypothesis import given, settings
from hypothesis import strategies as st

from spool.api import Spool
from spool.errors import NoSuchTask
from spool.queue import layout, select, tasks
from spool.queue.history import Story
from spool.queue.layout import State, Tree
from spool.queue.manifest import Manifest, Submitted
from spool.queue.select import Selection
from spool.queue.tasks import Task

Named = dict[str, str]


@pytest.fixture
def small(tree: Tree, spool: Spool) -> Named:
    """Six tasks by name, in four states, two of them arrivals."""
    made = {
        "fit-1": spool.submit(["true"], name="fit-1", workflow="scan", tags=["hot"]),
        "fit-2": spool.submit(["true"], name="fit-2", workflow="scan", tags=["hot", "new"]),
        "fit-10": spool.submit(["true"], name="fit-10", workflow="v1.2", hold=True),
        "other": spool.submit(["true"], name="other"),
    }
    spool.cancel(made["other"])
    ids = {name: task.id for name, task in made.items()}
    for name in ("drop", "@beam/run7"):
        os.makedirs(f"{tree.state(State.CREATED)}/{name}")
    return {**ids, "drop": "drop", "run7": "run7"}


def found(tree: Tree, *words: str, **narrow: object) -> list[str]:
    """The names of what is meant, sorted."""
    spots = select.find(tree, Selection(words=words, **narrow))  # type: ignore[arg-type]
    return sorted(name_of(spot.id) for spot in spots)


def name_of(task_id: str) -> str:
    parts = layout.parse_id(task_id)
    return parts.name if parts else task_id


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ((), ["drop", "fit-1", "fit-10", "fit-2", "other", "run7"]),
        (("fit-1",), ["fit-1"]),
        (("fit-",), ["fit-1", "fit-10", "fit-2"]),
        (("fit-1.",), ["fit-1"]),
        (("fit",), ["fit-1", "fit-10", "fit-2"]),
        (("fit-?.*",), ["fit-1", "fit-2"]),
        (("fit-[2-9]*",), ["fit-2"]),
        (("*",), ["drop", "fit-1", "fit-10", "fit-2", "other", "run7"]),
        (("*it-1",), []),
        (("o", "d"), ["drop", "other"]),
        (("fit-1", "fit-10"), ["fit-1", "fit-10"]),
        (("drop",), ["drop"]),
        (("CREATED/drop",), ["drop"]),
        (("CREATED/@beam/run7/",), ["run7"]),
        (("FIT",), []),
        (("[",), []),
    ],
    ids=str,
)
def test_words_mean(tree: Tree, small: Named, words: tuple[str, ...], meant: list[str]) -> None:
    assert found(tree, *words) == meant


def test_a_whole_id_means_one_task_wherever_it_lies(tree: Tree, small: Named) -> None:
    for name in ("fit-1", "fit-10", "other"):
        assert found(tree, small[name]) == [name]
        assert found(tree, f"{where(tree, small[name])}/{small[name]}") == [name]
        assert found(tree, f"{tree.root}/{where(tree, small[name])}/{small[name]}/") == [name]
    assert found(tree, small["fit-1"], small["fit-1"], small["other"]) == ["fit-1", "other"]


def test_an_arrival_that_bears_an_id_is_found_by_it(tree: Tree) -> None:
    task_id = layout.new_id("fit", "26112215-4k")
    os.mkdir(tree.task(State.CREATED, "", task_id))
    assert found(tree, task_id) == ["fit"]


def test_an_id_that_is_nowhere_means_nothing(tree: Tree, small: Named) -> None:
    assert found(tree, layout.new_id("fit", "26112215-4k")) == []


@pytest.mark.parametrize("word", ["", "/", "//"])
def test_an_empty_word_never_means_everything(tree: Tree, small: Named, word: str) -> None:
    with pytest.raises(NoSuchTask, match="an empty word names no task"):
        found(tree, word)
    with pytest.raises(NoSuchTask, match="an empty word names no task"):
        found(tree, "fit-1", word)


# -- filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("narrow", "meant"),
    [
        ({"states": (State.READY,)}, ["fit-1", "fit-2"]),
        ({"states": (State.CANCELLED, State.WAITING)}, ["fit-10", "other"]),
        ({"states": (State.RUNNING,)}, []),
        ({"workflow": "scan"}, ["fit-1", "fit-2"]),
        ({"workflow": "v1.2"}, ["fit-10"]),
        ({"workflow": "v1.2", "states": (State.READY,)}, []),
        ({"workflow": "s*"}, ["fit-1", "fit-2"]),
        ({"workflow": "sca"}, []),
        ({"name": "fit-1"}, ["fit-1"]),
        ({"name": "fit-*"}, ["fit-1", "fit-10", "fit-2"]),
        ({"name": "run?"}, ["run7"]),
        ({"tags": ("hot",)}, ["fit-1", "fit-2"]),
        ({"tags": ("hot", "new")}, ["fit-2"]),
        ({"tags": ("cold",)}, []),
        ({"since": 1.0}, ["fit-1", "fit-10", "fit-2", "other"]),
        ({"since": 4e9}, []),
        ({"workflow": "scan", "tags": ("new",), "name": "fit-2"}, ["fit-2"]),
    ],
    ids=str,
)
def test_filters_narrow(
    tree: Tree, small: Named, narrow: dict[str, object], meant: list[str]
) -> None:
    assert found(tree, **narrow) == meant


def test_filters_narrow_what_the_words_leave(tree: Tree, small: Named) -> None:
    assert found(tree, "fit-1", workflow="scan") == ["fit-1"]
    assert found(tree, small["fit-10"], workflow="scan") == []
    assert found(tree, small["fit-10"], states=(State.READY,)) == []


def test_a_workflow_that_is_hashed_in_its_lane_is_found(tree: Tree, spool: Spool) -> None:
    spool.submit(["true"], name="a", workflow="v1.2")
    spool.submit(["true"], name="b", workflow="v1.3")
    assert found(tree, workflow="v1.3") == ["b"]


def test_only_what_the_question_needs_is_opened(
    tree: Tree, small: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load_task = tasks.load
    monkeypatch.setattr(
        tasks, "load", lambda path, *rest: opened.append(path) or load_task(path, *rest)
    )
    found(tree, "fit", name="fit-*", states=(State.READY,))
    assert opened == []
    found(tree, workflow="nobody", states=(State.READY,))
    assert opened == []  # the lane says it
    found(tree, tags=("new",), states=(State.READY,))
    assert len(opened) == 2


def test_the_answer_is_streamed_by_state_group_and_id(tree: Tree, small: Named) -> None:
    spots = select.find(tree, Selection())
    assert isinstance(spots, Iterator)
    states = [spot.state for spot in spots]
    assert states == sorted(states, key=select.ORDER.index)
    assert set(select.ORDER) == set(State)


def test_a_selection_knows_whether_it_means_everything() -> None:
    assert Selection().everything
    assert not Selection(words=("x",)).everything
    assert not Selection(since=1.0).everything


# -- rumours and strange names -------------------------------------------------------------------


def test_a_task_that_vanishes_while_we_look_is_not_meant(tree: Tree, small: Named) -> None:
    spots = select.find(tree, Selection(workflow="scan"))
    assert next(spots).state is State.READY
    shutil.rmtree(tree.state(State.READY))
    assert list(spots) == []


def test_a_task_that_cannot_be_read_is_not_meant_by_what_it_asks_for(
    tree: Tree, small: Named
) -> None:
    path = tree.task(*tasks.find(tree, small["fit-1"]))  # type: ignore[misc]
    with open(f"{path}/{layout.MANIFEST}", "w") as file:
        file.write("{")
    assert found(tree, tags=("hot",)) == ["fit-2"]
    assert "fit-1" in found(tree, name="fit-1")


@pytest.mark.parametrize(
    "name",
    [
        "b\udcff",
        "two words",
        "line\nbreak",
        "-rf",
        "\x1b[2J",
        "[ab]",
        "~new",
        "ünï",
        "x" * 200,
        "@",
    ],
    ids=ascii,
)
def test_a_strange_arrival_is_listed_and_can_be_named(tree: Tree, name: str) -> None:
    inside = f"{name}/x" if name.startswith("@") else name
    os.makedirs(f"{tree.state(State.CREATED)}/{inside}")
    listed = [spot.id for spot in select.find(tree, Selection())]
    assert listed == [os.path.basename(inside)]
    assert found(tree, workflow="scan") == []
    if "[" not in name:
        assert [spot.id for spot in select.find(tree, Selection(words=(listed[0],)))] == listed


def test_a_plain_file_and_a_link_in_created_are_listed_too(tree: Tree) -> None:
    created = tree.state(State.CREATED)
    with open(f"{created}/file", "w"):
        pass
    os.symlink("/nowhere", f"{created}/link")
    os.mkdir(f"{created}/.hidden")
    assert found(tree) == ["file", "link"]
    assert found(tree, tags=("x",)) == []


def test_groups_that_are_no_lanes_do_not_stop_the_search(tree: Tree, small: Named) -> None:
    os.makedirs(tree.task(State.READY, "lost+found", "x"))
    os.makedirs(tree.task(State.READY, "c0@26112215-00", "y"))
    with open(tree.group(State.READY, "file"), "w"):
        pass
    assert found(tree, workflow="scan") == ["fit-1", "fit-2"]
    assert {"x", "y"} <= set(found(tree))


# -- the one task --------------------------------------------------------------------------------


def test_one_is_the_only_match_or_the_exact_one(tree: Tree, small: Named) -> None:
    assert select.one(tree, "other").id == small["other"]
    assert select.one(tree, small["fit-1"]).id == small["fit-1"]
    os.mkdir(f"{tree.state(State.CREATED)}/drop2")
    assert select.one(tree, "drop").id == "drop"


def test_several_matches_are_named_and_none_is_said(tree: Tree, small: Named) -> None:
    with pytest.raises(NoSuchTask, match="means several tasks .*fit-1.*; write more of the id"):
        select.one(tree, "fit")
    with pytest.raises(NoSuchTask, match="no task matches 'zzz'. Run: spool ls"):
        select.one(tree, "zzz")


@pytest.mark.parametrize("told", ["", "soon", "2026-02-31", "\x00"])
def test_without_a_sound_time_the_shard_says_when_a_task_came(tree: Tree, told: str) -> None:
    wanted = Manifest(command=["x"], submitted=Submitted(time=told))
    task_id = "x.26112215-4k-k3f9x2q7bd"
    one = Task(task_id, "", b"", b"", wanted, Story())
    assert select.submitted_at(one) == layout.shard_hour("26112215-4k")


# -- properties ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Tasks whose names are beginnings of one another, in three states."""
    tree = make_tree(tmp_path_factory.mktemp("select") / "spool")
    spool = Spool(tree.root)
    for name in ("a", "ab", "ab-1", "ab-10", "b", "b.c"):
        for hold in (False, True):
            spool.submit(["true"], name=name, hold=hold)
    spool.cancel(next(spool.tasks(name="ab")))
    return tree


WORDS = st.sampled_from(
    ["a", "ab", "ab-", "ab-1", "b", "b.", "*", "a*", "?", "*-1*", "[ab].*", "z"]
)
STATES = st.sets(st.sampled_from([State.READY, State.WAITING, State.CANCELLED, State.FAILED]))


def model(ids: list[str], word: str) -> set[str]:
    """What a word means among ids, said as simply as can be."""
    if any(mark in word for mark in "*?["):
        return set(fnmatch.filter(ids, word))
    named = {one for one in ids if name_of(one) == word}
    return named or {one for one in ids if one.startswith(word)}


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=4), STATES)
def test_words_are_alternatives_and_states_narrow_what_they_leave(
    crowd: Tree, words: list[str], states: set[State]
) -> None:
    everywhere = list(tasks.spots(crowd, tuple(State)))
    ids = [spot.id for spot in everywhere]
    meant = set(ids) if not words else set().union(*(model(ids, word) for word in words))
    wanted = {
        spot for spot in everywhere if spot.id in meant and (spot.state in states or not states)
    }
    got = list(select.find(crowd, Selection(words=tuple(words), states=tuple(states))))
    assert set(got) == wanted and len(got) == len(wanted)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_whole_id_means_its_task_alone_wherever_it_stands(
    crowd: Tree, data: st.DataObject
) -> None:
    spot = data.draw(st.sampled_from(list(tasks.spots(crowd, tuple(State)))))
    shown = data.draw(st.sampled_from([spot.id, f"{spot.state}/{spot.group}/{spot.id}"]))
    assert list(select.find(crowd, Selection(words=(shown,)))) == [spot]
    assert select.one(crowd, shown) == spot


def test_brackets_behind_part_of_a_name_mean_no_elements(tree: Tree, small: Named) -> None:
    assert list(select.find(tree, Selection(words=("fit-[12]",)))) == []
    with pytest.raises(NoSuchTask, match=r"A glob over ids takes in their ends: 'fit-\[12\].\*'"):
        list(select.find(tree, Selection(words=("fit-[12]",), strict=True)))
    found = {spot.id for spot in select.find(tree, Selection(words=("fit-[12].*",)))}
    assert found == {small["fit-1"], small["fit-2"]}
