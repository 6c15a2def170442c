#!/usr/bin/env python3
"""energy - the GFN2-xTB energy of one molecule, by the tblite library.

    energy.py FILE.xyz [--output FILE.json] [--slow SECONDS]

Reads   FILE.xyz (angstrom); its comment may say `charge=0 unpaired=1`.
Writes  energy.json (or --output) in the current directory: molecule, atoms, energy_hartree,
        seconds.
Prints  one line.
Fails   exit 1 and one line on stderr: unreadable or impossible molecule, no convergence.

`--slow` repeats the calculation until that many seconds have passed, so that a time limit has
a real computation to stop. Imports numpy but not ASE: most of a run is start-up.
optimise.py and frequencies.py read molecules and call tblite by the functions here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Before numpy: a dozen atoms are slower on two threads than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from tblite.exceptions import TBLiteRuntimeError
from tblite.interface import SYMBOL_TO_NUMBER, Calculator

ANGSTROM_IN_BOHR = 1 / 0.529177210903  # CODATA 2018
HEAVIEST = 86  # radon: GFN2-xTB has no parameters beyond


class MoleculeError(Exception):
    """The molecule cannot be read or cannot be; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Molecule:
    """Atomic numbers, positions in angstrom, and what the comment line says."""

    name: str
    numbers: tuple[int, ...]
    positions: tuple[tuple[float, ...], ...]
    charge: int
    unpaired: int


def read_molecule(path: Path) -> Molecule:
    """The molecule in an xyz file. Raises MoleculeError."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except OSError as error:
        raise MoleculeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MoleculeError(f"{path}: not a text file") from None
    count, atoms = lines[0].strip(), lines[2:]
    if not atoms:
        raise MoleculeError(f"{path}: no atoms; expected a count, a comment and the atoms")
    if count != str(len(atoms)):
        raise MoleculeError(f"{path}:1: expected the number of atoms, {len(atoms)}, got {count!r}")
    read = [read_atom(line, f"{path}:{row}") for row, line in enumerate(atoms, start=3)]
    numbers, positions = zip(*read, strict=True)
    charge = comment_number(lines[1], "charge", f"{path}:2")
    unpaired = comment_number(lines[1], "unpaired", f"{path}:2")
    electrons = sum(numbers) - charge
    if unpaired < 0 or unpaired > electrons or (electrons - unpaired) % 2:
        raise MoleculeError(f"{path}:2: {electrons} electrons cannot have {unpaired} unpaired")
    return Molecule(path.stem, numbers, positions, charge, unpaired)


def read_atom(line: str, where: str) -> tuple[int, tuple[float, ...]]:
    """Atomic number and position in one line of an xyz file. Raises MoleculeError."""
    symbol, *words = line.split() or [""]
    if not 1 <= (number := SYMBOL_TO_NUMBER.get(symbol, 0)) <= HEAVIEST:
        raise MoleculeError(f"{where}: expected an element from H to Rn, got {symbol!r}")
    try:
        position = tuple(float(word) for word in words)
    except ValueError:
        position = ()
    if len(position) != 3 or not all(map(math.isfinite, position)):
        raise MoleculeError(f"{where}: expected three coordinates, got {' '.join(words)!r}")
    return number, position


def comment_number(comment: str, word: str, where: str) -> int:
    """The whole number after `word=` in the comment line, 0 if absent. Raises MoleculeError."""
    found = re.search(rf"\b{word}=(\S*)", comment)
    if found is None:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", found[1]):
        raise MoleculeError(f"{where}: expected {word}=NUMBER, got {found[0]!r}")
    return int(found[1])


def calculator_of(molecule: Molecule, accuracy: float = 1.0) -> Calculator:
    """What computes its energy and gradient; less is more accurate. Raises MoleculeError."""
    try:
        calculator = Calculator(
            "GFN2-xTB",
            np.array(molecule.numbers),
            np.array(molecule.positions) * ANGSTROM_IN_BOHR,
            charge=molecule.charge,
            uhf=molecule.unpaired,
        )
    except TBLiteRuntimeError as error:
        raise MoleculeError(f"{molecule.name}: {' '.join(str(error).split())}") from None
    calculator.set("verbosity", 0)
    calculator.set("accuracy", accuracy)
    return calculator


def computed(molecule: Molecule, calculator: Calculator) -> tuple[float, np.ndarray]:
    """Energy (hartree) and gradient (hartree/bohr) where it is now. Raises MoleculeError."""
    try:
        found = calculator.singlepoint()
        energy, gradient = float(found.get("energy")), found.get("gradient")
    except TBLiteRuntimeError as error:
        raise MoleculeError(f"{molecule.name}: {' '.join(str(error).split())}") from None
    if not (math.isfinite(energy) and np.isfinite(gradient).all()):
        raise MoleculeError(f"{molecule.name}: energy or gradient is no number")
    return energy, gradient


def single_point(molecule: Molecule) -> float:
    """Energy in hartree. Raises MoleculeError."""
    return computed(molecule, calculator_of(molecule))[0]


def run(path: Path, output: Path, slow_s: float) -> str:
    """Compute, write the result, return the line to print. Raises MoleculeError, OSError."""
    molecule = read_molecule(path)
    begin = time.monotonic()
    energy = single_point(molecule)
    while (seconds := time.monotonic() - begin) < slow_s:
        energy = single_point(molecule)
    result = {
        "molecule": molecule.name,
        "atoms": len(molecule.numbers),
        "energy_hartree": energy,
        "seconds": round(seconds, 4),
    }
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return f"{molecule.name}: {len(molecule.numbers)} atoms, {energy:.8f} hartree, {seconds:.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description="GFN2-xTB energy of one molecule.")
    parser.add_argument("file", metavar="FILE.xyz", type=Path)
    parser.add_argument("--output", metavar="FILE.json", type=Path, default=Path("energy.json"))
    parser.add_argument("--slow", metavar="SECONDS", type=float, default=0.0)
    options = parser.parse_args()
    try:
        print(run(options.file, options.output, options.slow))
    except (MoleculeError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
