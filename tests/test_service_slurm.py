"""A whole campaign by the service alone, on a real Slurm that has its own troubles meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import campaign
import slurm_cluster
from conftest import NO_SYNC, eventually, make_tree, needs_mpiexec

slurm = slurm_cluster.slurm

SETTINGS = f"""{NO_SYNC}
[door]
quiet = "0.3s"
[service]
system = "slurm"
interval = "2s"
idle_timeout = "1s"
padding = "10s"
settle = "4s"
within = "60s"
[queues.batch]
nodes = "1-4"
cores = 2
time = "2m"
max_queued = 2
directives = ["--exclusive"]
"""


def restarted(slurm: slurm_cluster.Slurm) -> None:
    """Stop the controller as an administrator does, and start it again from its saved state."""
    pid = int((slurm.folder / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the controller is gone", 30)
    time.sleep(1)  # somebody asks meanwhile
    slurm.run("slurmctld", "-f", slurm.environment["SLURM_CONF"])


@needs_mpiexec
def test_three_bursts_of_mixed_tasks_are_brought_home_by_the_service_alone(
    slurm: slurm_cluster.Slurm, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "spool", SETTINGS)

    def meanwhile(number: int) -> None:
        if number == 0:
            slurm.run("scontrol", "update", "nodename=node4", "state=down", "reason=a test")
        elif number == 1:
            restarted(slurm)
        elif slurm.node_state("node4").startswith("down"):  # the restart may have healed it
            slurm.run("scontrol", "update", "nodename=node4", "state=resume")

    around = campaign.environment(**slurm.environment, PATH=slurm_cluster.PATH)
    closed = campaign.run(tree, around, long_ones=3, between_s=16, within=400, meanwhile=meanwhile)
    story = campaign.shown(closed)
    print(story)
    assert campaign.utilisation(closed) >= 0.85, story
    assert campaign.empty(closed) <= 1, story
    assert campaign.interrupted(tree) >= 3, story
    assert slurm.run("squeue", "-h").strip() == ""
