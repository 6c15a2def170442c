#!/usr/bin/env python3
"""minima - the table of optimised molecules: energies, vibrations, zero-point energies.

    minima.py

Reads   *.energy.json and *.frequencies.json in the current directory, as energy.py and
        frequencies.py write them.
Prints  a line a molecule: atoms; energy at the minimum, zero-point energy and their sum in
        hartree; the lowest and the highest frequency in 1/cm; then the number of molecules.
Fails   exit 1 and a sentence: none is here, one lacks its other half, an unreadable file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

HEADERS = ("molecule", "atoms", "E/Eh", "ZPE/Eh", "E+ZPE/Eh", "lowest 1/cm", "highest 1/cm")


def read(kind: str) -> dict[str, dict[str, Any]]:
    """The results of a kind by molecule. Raises OSError, ValueError, KeyError."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in Path().glob(f"*.{kind}.json"))
    return {one["molecule"]: one for one in found}


def row(energy: dict[str, Any], vibrations: dict[str, Any]) -> tuple[str, ...]:
    """A molecule's line. Raises KeyError, TypeError, ValueError."""
    electronic, zero_point = energy["energy_hartree"], vibrations["zero_point_hartree"]
    lines = vibrations["frequencies_per_cm"]
    cells = (electronic, zero_point, electronic + zero_point)
    hartree = (f"{cell:.6f}" for cell in cells)
    ends = (f"{line:.0f}" for line in (lines[0], lines[-1]))
    return (energy["molecule"], str(energy["atoms"]), *hartree, *ends)


def main() -> None:
    try:
        energies, vibrations = read("energy"), read("frequencies")
        if halves := sorted(energies.keys() ^ vibrations.keys()):
            sys.exit(f"Error: {', '.join(halves)}: energy or frequencies are missing")
        rows = [row(energies[name], vibrations[name]) for name in sorted(energies)]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        sys.exit(f"Error: a result here is not readable: {error!r}")
    if not rows:
        sys.exit("Error: no *.energy.json and *.frequencies.json here")
    align = ("left", *["right"] * (len(HEADERS) - 1))
    print(tabulate(rows, HEADERS, "simple", disable_numparse=True, colalign=align))
    print(f"{len(rows)} molecules, each in a minimum")


if __name__ == "__main__":
    main()
