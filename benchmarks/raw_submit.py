"""raw_submit - the least that COUNT durable tasks of SIZE bytes cost: no ids, no JSON, no checks.

Run as  python raw_submit.py COUNT SIZE      in an empty folder, which it fills
"""

import ctypes
import os
import sys

SHARD = 10_000


def main(count: int, size: int) -> None:
    """mkdir, create and write, rename for each task; one syncfs for all."""
    content = b"x" * size
    os.mkdir("tmp")
    os.mkdir("ready")
    for first in range(0, count, SHARD):
        shard = f"ready/{first}"
        os.mkdir(shard)
        for number in range(first, min(first + SHARD, count)):
            task = f"tmp/task.{number}"
            os.mkdir(task)
            file = os.open(f"{task}/manifest.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(file, content)
            os.close(file)
            os.rename(task, f"{shard}/task.{number}")
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    if ctypes.CDLL(None, use_errno=True).syncfs(here):
        raise OSError(ctypes.get_errno(), "syncfs failed")


main(int(sys.argv[1]), int(sys.argv[2]))
