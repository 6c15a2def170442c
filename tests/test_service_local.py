"""A whole campaign by the service alone, on this machine as its batch system."""

from __future__ import annotations

from pathlib import Path

import campaign
from conftest import NO_SYNC, make_tree, needs_mpiexec

SETTINGS = f"""{NO_SYNC}
[door]
quiet = "0.3s"
[service]
system = "local"
interval = "2s"
idle_timeout = "1s"
padding = "10s"
settle = "4s"
within = "60s"
[queues.local]
nodes = "1-4"
cores = 2
time = "60s-150s"
max_queued = 2
"""


@needs_mpiexec
def test_three_bursts_of_mixed_tasks_are_brought_home_by_the_service_alone(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "spool", SETTINGS)
    closed = campaign.run(tree, campaign.environment(), long_ones=3, between_s=16, within=300)
    story = campaign.shown(closed)
    print(story)
    assert campaign.utilisation(closed) >= 0.85, story
    assert campaign.empty(closed) <= 1, story
    assert campaign.interrupted(tree) >= 3, story
