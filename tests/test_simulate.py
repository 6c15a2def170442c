"""A simulated launcher: it really claims, places, records and moves; its time is virtual."""

from __future__ import annotations

import json
import time

import pytest
from conftest import make_tree, run_spool, where
from crashing import history_of, words_of
from hypothesis import given
from hypothesis import strategies as st

from spool.api import Spool
from spool.errors import SpoolError
from spool.launcher import clock, simulate
from spool.launcher.simulate import Scene, scene_of
from spool.queue import journal


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "spool", "[launcher]\nsimulate = true\n")


def simulated(tree, scene, *words):
    options = ["--simulate", scene, "--idle-timeout", "0", "--json", *words]
    done = run_spool(tree.root, "launcher", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@given(st.integers(1, 9999), st.integers(1, 999), st.integers(1, 16), st.integers(0, 99))
def test_a_scene_is_read_as_it_is_written(nodes, cores, gpus, percent):
    text = f"nodes={nodes},cores={cores},gpus={gpus},memory=64G,latency=0.25s,spread={percent}%"
    assert scene_of(text) == Scene(nodes, cores, gpus, 65536, 0.25, percent / 100)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "means nothing"),
        ("nodes", "means nothing"),
        ("nodes=0", "from 1"),
        ("nodes=2,colour=red", "colour"),
        ("latency=soon", "duration"),
        ("spread=2", "0 to 0.99"),
        ("spread=x", "spread"),
    ],
)
def test_nonsense_is_told(text, word):
    with pytest.raises(SpoolError, match=word):
        scene_of(text)


def test_hours_of_many_nodes_pass_in_moments_and_every_task_is_recorded(tree, spool):
    ids = [
        task.id
        for task in spool.submit_many(
            {"command": ["x"], "time_estimate": "1h", "name": "t"} for _ in range(640)
        )
    ]
    begun = time.monotonic()
    told = simulated(tree, "nodes=4,cores=16,spread=0")
    assert time.monotonic() - begun < 30
    assert told["FINISHED"] == 640
    assert 36000 <= told["virtual_s"] < 36000 * 1.01  # ten tasks of an hour on each core
    assert all(where(tree, task).startswith("FINISHED/") for task in ids)
    assert all(words_of(tree, task) == ["start", "exit"] for task in ids)
    ends = [event for event in journal.read(tree) if event["what"] == "exit"]
    assert len({event["id"] for event in ends}) == len(ends) == 640
    assert all(event["elapsed_s"] == 3600 and event["code"] == 0 for event in ends)


def test_wide_and_narrow_tasks_never_take_more_than_there_is(tree, spool):
    shapes = [{}, {"cores_per_rank": 16}, {"nodes": 3, "ranks_per_node": 8}, {"nodes": 4}]
    many = [{"command": ["x"], "time_estimate": "1m", **shapes[n % 4]} for n in range(120)]
    list(spool.submit_many(many))
    assert simulated(tree, "nodes=4,cores=16")["FINISHED"] == 120
    changes = []
    for event in journal.read(tree):
        if event["what"] == "exit":
            changes += [(event["started"], event["cores"]), (event["time"], -event["cores"])]
    used = most = 0
    for _, cores in sorted(changes):
        used += cores
        most = max(most, used)
    assert most <= 64


def test_latency_is_charged_for_each_operation_of_the_leader(tree, spool):
    list(spool.submit_many({"command": ["x"]} for _ in range(200)))
    told = simulated(tree, "nodes=100,cores=64,latency=0.01s")
    assert told["virtual_s"] >= 0.01 * told["operations"] > 0.01 * 400


def test_at_the_end_of_its_time_all_go_back(tree, spool):
    task = spool.submit(["x"], time_estimate="1m").id
    other = spool.submit(["x"], time_estimate="2h").id
    told = simulated(tree, "nodes=1,cores=4", "--time-limit", "1h")
    assert told["FINISHED"] == 1
    assert where(tree, task).startswith("FINISHED/") and where(tree, other).startswith("READY/")
    assert history_of(tree, task)[-1]["what"] == "exit"


def test_a_spool_whose_tasks_are_real_is_not_simulated(tmp_path):
    tree = make_tree(tmp_path / "real")
    task = Spool(tree.root).submit(["x"]).id
    done = run_spool(tree.root, "launcher", "--simulate", "nodes=2")
    assert done.returncode == 1 and "simulate = true" in done.stderr
    assert where(tree, task).startswith("READY/")


def test_what_is_uncharged_takes_no_virtual_time():
    before = clock.now()
    with clock.uncharged():
        time.sleep(0.05)
    assert clock.now() - before < 0.01
    clock.jump(5.0)
    assert clock.now() - before > 5
    clock.reset()
    assert simulate.LASTS_S > 0 and clock.ahead() == 0
