"""[service] and [queues.NAME] of spool.toml: read as meant, or refused with what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spool import config
from spool.config import Settings
from spool.errors import NotASpool, SpoolError
from spool.queue.layout import SETTINGS
from spool.service import policy
from spool.service.policy import QueueSettings, ServiceSettings
from spool.service.system import Partition
from spool.service.terms import Band, NodeShape, Policy, Queue

M, H, D = 60.0, 3600.0, 86400.0


def written(root: Path, text: str) -> str:
    """A folder with this spool.toml."""
    root.mkdir(exist_ok=True)
    (root / SETTINGS).write_text(f"format = 1\n{text}\n")
    return str(root)


def load(root: Path, text: str) -> ServiceSettings:
    return policy.load(written(root, text))


# -- what is meant -------------------------------------------------------------------------------


def test_nothing_said_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == ServiceSettings()
    assert load(tmp_path, "[service]\n[queues]") == ServiceSettings()


def test_the_template_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    lines = [
        line.removeprefix("# ") if "=" in line else line for line in config.TEMPLATE.split("\n")
    ]
    shown = "\n".join(line for line in lines if not line.startswith(("# spool", "format")))
    assert load(tmp_path, shown) == ServiceSettings()
    for key in policy.SERVICE:
        assert f"\n{key} = " in shown or f"\n#{key} = " in shown
    for key in policy.QUEUE:
        assert f"\n#{key} = " in shown


def test_the_template_s_queue_is_a_queue(tmp_path: Path) -> None:
    example = config.TEMPLATE.split("#[queues.debug]")[1].split("[transfers]")[0]
    lines = [line[1:] for line in example.splitlines() if line[:1] == "#" and "bands" not in line]
    found = load(tmp_path, "\n".join(("[queues.debug]", *lines)))
    assert found.policy.queues == (
        Queue(
            name="debug", bands=(Band(1, 16, H),), node=NodeShape(64, 0, 192 * 1024), max_queued=1
        ),
    )


def test_a_whole_policy(tmp_path: Path) -> None:
    text = """
    [service]
    system = "slurm"
    interval = "2m"
    account = "m1234"
    max_queued = 20
    max_nodes = 800
    budget = "1000 node-hours"
    padding = "3m"
    default_time = "20m"
    min_utilisation = 0.7
    queue_wait = "12h"
    settle = "90s"
    within = "30m"
    patience = "2h"
    stagers = false
    idle_timeout = "30s"
    setup = ["module load cray-mpich"]
    directives = "--constraint=knl"
    template = "job.template"
    [queues.debug]
    nodes = "1-16"
    time = "5m-1h"
    max_queued = 1
    max_running = 2
    max_nodes = 16
    cores = 64
    gpus = 4
    memory = "192G"
    features = ["knl", "gpu"]
    cost = 0.5
    account = "debugging"
    directives = ["--qos=debug"]
    setup = ["ulimit -c 0"]
    [queues.default]
    bands = ["128-255 3h", "256-383: 6h", "802- 1d"]
    """
    debug = Queue(
        name="debug",
        bands=(Band(1, 16, H),),
        min_s=5 * M,
        node=NodeShape(64, 4, 192 * 1024),
        features=frozenset({"knl", "gpu"}),
        max_queued=1,
        max_running=2,
        max_live_nodes=16,
        cost=0.5,
    )
    default = Queue(
        name="default", bands=(Band(128, 255, 3 * H), Band(256, 383, 6 * H), Band(802, 0, D))
    )
    found = load(tmp_path, text)
    assert found.policy == Policy(
        queues=(debug, default),
        max_queued=20,
        max_live_nodes=800,
        budget_node_s=1000 * H,
        padding_s=3 * M,
        default_task_s=20 * M,
        min_utilisation=0.7,
        queue_wait_s=12 * H,
        settle_s=90,
        within_s=30 * M,
        patience_s=2 * H,
    )
    assert (found.system, found.interval_s, found.stagers) == ("slurm", 120.0, False)
    assert (found.idle_timeout_s, found.template) == (30.0, "job.template")
    assert found.of("debug") == QueueSettings(
        account="debugging",
        directives=("--constraint=knl", "--qos=debug"),
        setup=("module load cray-mpich", "ulimit -c 0"),
    )
    assert found.of("default").account == "m1234"
    assert found.of("elsewhere").directives == ("--constraint=knl",)


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("", Band(1, 0, 0)),
        ("nodes = 16", Band(1, 16, 0)),
        ("nodes = '16'", Band(1, 16, 0)),
        ("nodes = '4-'", Band(4, 0, 0)),
        ("time = '1h'", Band(1, 0, H)),
        ("time = 3600", Band(1, 0, H)),
        ("time = '10m-1d'", Band(1, 0, D)),
        ("time = '10m-'", Band(1, 0, 0)),
        ("time = '1:00:00'", Band(1, 0, H)),
        ("time = '1-00:00:00'", Band(1, 0, D)),
    ],
)
def test_nodes_and_times_have_several_forms(tmp_path: Path, text: str, band: Band) -> None:
    assert load(tmp_path, f"[queues.a]\n{text}").policy.queues[0].bands == (band,)


def test_the_shortest_walltime(tmp_path: Path) -> None:
    def least(text: str) -> float:
        return load(tmp_path, f"[queues.a]\n{text}").policy.queues[0].min_s

    assert least("") == 300.0
    assert least("time = '10m-1d'") == 600.0
    assert least("time = '2m'") == 120.0  # no longer than the longest
    assert least("time = '10m-'\nbands = ['1-4 1h']") == 600.0


@pytest.mark.parametrize("text", ["1000", "1000.0", '"1000 node-hours"', '"1000 node-hours"'])
def test_a_budget_is_node_hours(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"service.budget = {text}").policy.budget_node_s == 1000 * H


def test_a_budget_of_nothing_is_one(tmp_path: Path) -> None:
    assert load(tmp_path, "service.budget = 0").policy.budget_node_s == 0.0


def test_a_queue_s_name_may_be_any_word(tmp_path: Path) -> None:
    found = load(tmp_path, '[queues."debug.q@host"]\n[queues.""]')
    assert [queue.name for queue in found.policy.queues] == ["debug.q@host", ""]


# -- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("service = 5", "service: expected a section, got 5"),
        ("queues = 5", "queues: expected a section, got 5"),
        ("queues.debug = 5", "queues: expected a section for each queue: [queues.NAME]"),
        ("[service]\nmax_node = 5", "unknown setting service.max_node; allowed are system, "),
        ("[queues.a]\nnode = 5", "unknown setting queues.a.node; allowed are nodes, time, bands"),
        ("[queues.'-x']", "queues.'-x': expected a queue's name"),
        ("[queues.'a b']", "queues.'a b': expected a queue's name"),
        ("service.system = 'sun'", "service.system: expected auto, slurm, pbs, torque, lsf, flux"),
        ("service.interval = 'soon'", "service.interval: expected a duration such as"),
        ("service.interval = 0", "service.interval: must be more than 0"),
        ("service.default_time = '0s'", "service.default_time: must be more than 0"),
        ("service.within = 0", "service.within: must be more than 0"),
        ("service.account = 'a b'", "service.account: expected a name without blanks"),
        ("service.account = '--x'", "service.account: expected a name without blanks"),
        ("service.account = 7", "service.account: expected a name without blanks, got 7"),
        ("service.max_queued = -1", "service.max_queued: expected a whole number, 0 or more"),
        ("service.max_queued = true", "service.max_queued: expected a whole number"),
        ("service.max_nodes = 1.5", "service.max_nodes: expected a whole number"),
        ("service.budget = -1", "service.budget: expected node-hours, such as"),
        ("service.budget = 'much'", "service.budget: expected node-hours, such as"),
        ("service.budget = nan", "service.budget: expected node-hours, such as"),
        ("service.budget = true", "service.budget: expected node-hours, such as"),
        ("service.min_utilisation = 1.5", "service.min_utilisation: expected a share, 0 to 1"),
        ("service.min_utilisation = '50%'", "service.min_utilisation: expected a share, 0 to 1"),
        ("service.stagers = 1", "service.stagers: expected true or false, got 1"),
        ("service.setup = 5", "service.setup: expected lines of text"),
        ("service.setup = ['']", "service.setup: expected lines of text"),
        ('service.setup = "a\\nb"', "service.setup: expected lines of text"),
        ("service.directives = [5]", "service.directives: expected lines of text"),
        ("service.template = '/etc/x'", "service.template: expected a path inside the spool"),
        ("service.template = '../x'", "service.template: expected a path inside the spool"),
        ("queues.a.nodes = 0", "queues.a.nodes: expected at least 1 node"),
        ("queues.a.nodes = '16-8'", "queues.a.nodes: expected at least 1 node, and no fewer"),
        ("queues.a.nodes = 'all'", 'queues.a.nodes: expected numbers of nodes, such as "1-16"'),
        ("queues.a.nodes = '-'", "queues.a.nodes: expected numbers of nodes"),
        ("queues.a.nodes = true", "queues.a.nodes: expected numbers of nodes"),
        ("queues.a.time = '2h-1h'", "queues.a.time: expected no less at most than at least"),
        ("queues.a.time = 'long'", "queues.a.time: expected a duration such as"),
        ("queues.a.time = true", "queues.a.time: expected a duration such as"),
        ("queues.a.bands = []", "queues.a.bands: expected lines such as"),
        ("queues.a.bands = ['128 nodes 3h']", "queues.a.bands: expected lines such as"),
        ("queues.a.bands = [128]", "queues.a.bands: expected lines such as"),
        ("queues.a.bands = ['1-8 1h', '8-9 2h']", "in order, none over another"),
        ("queues.a.bands = ['1- 1h', '8-9 2h']", "in order, none over another"),
        ("[queues.a]\nbands = ['1-8 1h']\nnodes = 4", "queues.a: bands say nodes and times"),
        ("[queues.a]\nbands = ['1-8 1h']\ntime = '1h'", "queues.a: bands say nodes and times"),
        ("queues.a.memory = 'much'", "queues.a.memory: expected a memory size such as"),
        ("queues.a.cores = '64'", "queues.a.cores: expected a whole number"),
        ("queues.a.features = 'knl'", "queues.a.features: expected names, such as"),
        ("queues.a.features = ['a b']", "queues.a.features: expected a feature's name"),
        ("queues.a.cost = -1", "queues.a.cost: expected a number, 0 or more"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(
    tmp_path: Path, text: str, says: str
) -> None:
    root = written(tmp_path, text)
    with pytest.raises(SpoolError) as caught:
        policy.load(root)
    assert str(caught.value).startswith(f"{root}/{SETTINGS}: ")
    assert says in str(caught.value)


def test_no_spool_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotASpool, match="Run: spool init"):
        policy.load(str(tmp_path))


def test_other_commands_do_not_mind_these_sections(tmp_path: Path) -> None:
    root = written(tmp_path, "service.anything = 5\n[queues.a]\nnodes = 0")
    assert config.load(root) == Settings()


# -- what the batch system tells -----------------------------------------------------------------

NODE = NodeShape(64, 0, 1000)


def partition(name: str, **changes: Any) -> Partition:
    given: dict[str, Any] = {"nodes": 100, "node": NODE, "max_s": D}
    return Partition(name=name, **{**given, **changes})


def test_without_queues_the_default_one_is_asked() -> None:
    found = policy.completed(
        Policy(queues=(), max_queued=9), [partition("a"), partition("b", default=True)]
    )
    assert found == Policy(
        queues=(Queue(name="b", bands=(Band(1, 100, D),), node=NODE, max_queued=4),), max_queued=9
    )


def test_without_a_default_one_all_are() -> None:
    found = policy.from_partitions([partition("a"), partition("b", max_s=None, max_nodes=8)])
    assert [(queue.name, queue.bands) for queue in found] == [
        ("a", (Band(1, 100, D),)),
        ("b", (Band(1, 8, 0.0),)),
    ]


def test_what_was_said_of_a_queue_stays_and_the_rest_is_filled() -> None:
    said = Queue(name="a", bands=(Band(2, 0, H),), node=NodeShape(gpus=2), cost=3.0)
    found = policy.completed(Policy(queues=(said,)), [partition("a", max_nodes=500)])
    assert found.queues == (
        Queue(name="a", bands=(Band(2, 100, H),), node=NodeShape(64, 2, 1000), cost=3.0),
    )
    said = Queue(name="a", bands=(Band(2, 4, H),), node=NodeShape(8))
    assert policy.completed(Policy(queues=(said,)), [partition("a")]).queues == (said,)


def test_the_nameless_queue_is_the_default_one() -> None:
    said = Queue(name="", bands=(Band(1, 0, 0.0),))
    told = [partition("a"), partition("b", default=True, nodes=7)]
    assert policy.completed(Policy(queues=(said,)), told).queues[0].bands == (Band(1, 7, D),)


def test_a_queue_that_is_not_told_of_stays_as_it_was() -> None:
    said = Queue(name="z", bands=(Band(1, 0, 0.0),))
    assert policy.completed(Policy(queues=(said,)), [partition("a")]).queues == (said,)


def test_a_short_partition_has_a_short_least_walltime() -> None:
    assert policy.from_partitions([partition("a", max_s=120.0)])[0].min_s == 120.0
