"""bare_loop - start a program COUNT times, two at a time, and record nothing: a floor for Python.

Run as  python bare_loop.py COUNT PROGRAM
"""

import os
import sys


def main(count: int, program: str) -> None:
    """Start, wait, start the next."""
    left = count
    running = 0
    while left or running:
        while left and running < 2:
            os.posix_spawn(program, [program], os.environ)
            left, running = left - 1, running + 1
        os.wait4(-1, 0)
        running -= 1


main(int(sys.argv[1]), sys.argv[2])
