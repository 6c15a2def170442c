#!/usr/bin/env python3
"""optimise - the GFN2-xTB geometry of least energy nearest to a molecule's, by BFGS.

    optimise.py FILE.xyz [--slow NAME]

Reads   FILE.xyz (angstrom), as energy.py does.
Writes  reached/FILE.xyz at the start and after each step, whole at any moment: whoever is stopped
        can be gone on with from there. At the end optimised/FILE.xyz.
Prints  a line a step: energy in hartree, largest force on an atom in hartree/bohr.
Fails   exit 1 and one line on stderr: an impossible molecule, forces still too large after 200
        steps.

`--slow NAME`: if FILE is NAME.xyz, each gradient is computed again and again for half a second,
so that a time limit has a real computation to stop.

BFGS keeps a guess of the second derivatives and mends it with each pair of gradients (Nocedal,
Wright: Numerical Optimization, 2nd edition, eq. 6.19); the first guess, 0.7 hartree/bohr^2 along
every axis, is that of ASE (70 eV/angstrom^2). No atom moves further than 0.3 bohr in a step.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from energy import (  # first: it sets the number of threads before numpy is loaded
    ANGSTROM_IN_BOHR,
    SYMBOL_TO_NUMBER,
    Molecule,
    MoleculeError,
    calculator_of,
    computed,
    read_molecule,
)

import numpy as np  # isort: skip

CONVERGED = 1e-5  # hartree/bohr, on any atom
ACCURACY = 0.01  # of tblite: a hundred times as tight as by default
MOST_STEPS = 200
FIRST_CURVATURE = 0.7  # hartree/bohr^2
LONGEST_MOVE = 0.3  # bohr
SLOW_S = 0.5
SYMBOL_OF = {number: symbol for symbol, number in SYMBOL_TO_NUMBER.items() if symbol.istitle()}

Gradient = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Positions in bohr -> energy in hartree, gradient in hartree/bohr."""


def gradient_of(molecule: Molecule, at_least_s: float) -> Gradient:
    """What computes energy and gradient, for at least so long. Raises MoleculeError."""
    calculator = calculator_of(molecule, ACCURACY)

    def gradient(positions: np.ndarray) -> tuple[float, np.ndarray]:
        until = time.monotonic() + at_least_s
        calculator.update(positions)
        found = computed(molecule, calculator)
        while time.monotonic() < until:
            found = computed(molecule, calculator)
        return found

    return gradient


def largest(vectors: np.ndarray) -> float:
    """The length of the longest of an atom's vectors."""
    return float(np.linalg.norm(vectors, axis=1).max())


def next_move(curvature: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Where to: Newton's step downhill, shortened if an atom would go too far."""
    values, vectors = np.linalg.eigh(curvature)
    move = (vectors @ (vectors.T @ forces.ravel() / np.abs(values))).reshape(forces.shape)
    return move * min(1.0, LONGEST_MOVE / max(largest(move), 1e-12))


def mended(curvature: np.ndarray, move: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The curvature that also explains how the gradient changed along the last move."""
    s, y = move.ravel(), change.ravel()
    if s @ y <= 1e-12:
        return curvature  # no minimum along it: BFGS would lose its way
    bend = curvature @ s
    return curvature + np.outer(y, y) / (s @ y) - np.outer(bend, bend) / (s @ bend)


def optimise(molecule: Molecule, gradient: Gradient, keep: Callable[[Molecule], None]) -> Molecule:
    """The molecule at rest. Raises MoleculeError."""
    here = np.array(molecule.positions) * ANGSTROM_IN_BOHR
    curvature = np.eye(here.size) * FIRST_CURVATURE
    keep(molecule)
    energy, slope = gradient(here)
    for step in range(MOST_STEPS + 1):
        print(f"{step:4d}  {energy:15.8f}  {largest(slope):.6f}", flush=True)
        keep(moved(molecule, here))
        if largest(slope) < CONVERGED:
            return moved(molecule, here)
        move = next_move(curvature, -slope)
        here, before = here + move, slope
        energy, slope = gradient(here)
        curvature = mended(curvature, move, slope - before)
    raise MoleculeError(
        f"{molecule.name}: not at rest after {MOST_STEPS} steps; the largest force is"
        f" {largest(slope):.6f} hartree/bohr, expected below {CONVERGED}"
    )


def moved(molecule: Molecule, positions: np.ndarray) -> Molecule:
    """The molecule with its atoms at these positions, in bohr."""
    return replace(molecule, positions=tuple(map(tuple, positions / ANGSTROM_IN_BOHR)))


def write_molecule(molecule: Molecule, path: Path) -> None:
    """An xyz file, whole at any moment. Raises OSError."""
    lines = [
        str(len(molecule.numbers)),
        f"{molecule.name} charge={molecule.charge} unpaired={molecule.unpaired}",
    ]
    for number, (x, y, z) in zip(molecule.numbers, molecule.positions, strict=True):
        lines.append(f"{SYMBOL_OF[number]:<2} {x:13.8f} {y:13.8f} {z:13.8f}")
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="GFN2-xTB geometry of one molecule.")
    parser.add_argument("file", metavar="FILE.xyz", type=Path)
    parser.add_argument("--slow", metavar="NAME", help="take long over this molecule")
    options = parser.parse_args()
    try:
        molecule = read_molecule(options.file)
        gradient = gradient_of(molecule, SLOW_S if molecule.name == options.slow else 0.0)
        reached = Path("reached", options.file.name)
        found = optimise(molecule, gradient, lambda one: write_molecule(one, reached))
        write_molecule(found, Path("optimised", options.file.name))
    except (MoleculeError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
