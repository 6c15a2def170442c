"""An MPI program for tests: every rank tells where it runs and on what, every thread its number.

Prints one JSON line: a list of {rank, size, host, local, cpus, threads}, by rank.
"""

import json
import os
import sys
import threading

from mpi4py import MPI

world = MPI.COMM_WORLD
threads: list[int] = []
count = int(os.environ.get("OMP_NUM_THREADS", "1"))
started = [threading.Thread(target=threads.append, args=(number,)) for number in range(count)]
for thread in started:
    thread.start()
for thread in started:
    thread.join()
told = {
    "rank": world.rank,
    "size": world.size,
    "host": os.uname().nodename,
    "cpus": sorted(os.sched_getaffinity(0)),
    "threads": sorted(threads),
    "task": os.environ.get("SPOOL_TASK", ""),
}
rows = world.gather(told)
if world.rank == 0:
    sys.stdout.write(json.dumps(rows) + "\n")
