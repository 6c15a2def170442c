#!/usr/bin/env python3
"""table - the energies that lie in a spool's finished tasks, as one table.

    table.py SPOOL

Reads   SPOOL/FINISHED/*/*/energy.json: a plain glob, for a finished task is a directory.
Prints  molecule, atoms and energy in hartree, as many columns as the terminal has room for;
        last, the number of molecules and their sum.
Fails   exit 1 and a sentence: nothing finished, an unreadable file.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import zip_longest
from pathlib import Path

from tabulate import tabulate

MOST_COLUMNS = 3
HEADERS = ("molecule", "atoms", "energy/Eh")
Row = tuple[str, str, str]


def read_row(path: Path) -> tuple[str, int, float]:
    """Molecule, atoms and energy of one finished task. Raises OSError, ValueError, KeyError."""
    result = json.loads(path.read_text(encoding="utf-8"))
    return str(result["molecule"]), int(result["atoms"]), float(result["energy_hartree"])


def side_by_side(rows: list[Row], columns: int) -> str:
    """The rows in so many columns, read downwards."""
    height = -(-len(rows) // columns)
    blocks = [rows[start : start + height] for start in range(0, len(rows), height)]
    lines = [sum(cells, ()) for cells in zip_longest(*blocks, fillvalue=("", "", ""))]
    headers = HEADERS * len(blocks)
    align = ("left", "right", "right") * len(blocks)
    text: str = tabulate(lines, headers, "simple", disable_numparse=True, colalign=align)
    return text


def fitting(rows: list[Row], width: int) -> str:
    """The table with the most columns that stay within width, at least one."""
    for columns in range(MOST_COLUMNS, 0, -1):
        text = side_by_side(rows, columns)
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Usage: table.py SPOOL")
    spool = Path(sys.argv[1])
    try:
        found = sorted(read_row(path) for path in spool.glob("FINISHED/*/*/energy.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"Error: {spool}: an energy.json is not readable: {error!r}")
    if not found:
        sys.exit(f"Error: no finished task in {spool} holds an energy.json. See: spool status")
    rows = [(name, str(atoms), f"{energy:.6f}") for name, atoms, energy in found]
    print(fitting(rows, shutil.get_terminal_size().columns))
    print(f"{len(found)} molecules, {sum(energy for *_, energy in found):.6f} hartree in total")


if __name__ == "__main__":
    main()
