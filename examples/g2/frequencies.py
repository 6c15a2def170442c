#!/usr/bin/env python3
"""frequencies - how a molecule vibrates, harmonically, and its zero-point energy, by GFN2-xTB.

    frequencies.py FILE.xyz [--output FILE.json]

Reads   FILE.xyz (angstrom), an optimised geometry.
Writes  frequencies.json (or --output): molecule, frequencies_per_cm, zero_point_hartree,
        rigid_per_cm.
Prints  one line.
Fails   exit 1 and one line on stderr: an impossible molecule, one that is not at rest, one at rest
        but in no minimum (an imaginary frequency).

Second derivatives are central differences of gradients, 0.005 bohr to either side. In coordinates
weighted by mass (standard atomic weights, as ASE has them) the rigid motions, six or, of a linear
molecule, five, are taken out, and what is left is diagonalised. `rigid_per_cm` is the largest
frequency of a rigid motion, which would be zero were the molecule wholly at rest and all exact.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from energy import (  # first: it sets the number of threads before numpy is loaded
    ANGSTROM_IN_BOHR,
    Molecule,
    MoleculeError,
    calculator_of,
    computed,
    read_molecule,
)

import numpy as np  # isort: skip
from ase.data import atomic_masses  # isort: skip

# CODATA 2018, https://physics.nist.gov/cuu/Constants
UNIT_IN_ELECTRON_MASSES = 1822.888486209
HARTREE_IN_PER_CM = 219474.63136320

SHIFT = 0.005  # bohr
ACCURACY = 0.01  # of tblite: a hundred times as tight as by default, for differences
AT_REST = 1e-3  # hartree/bohr
LINEAR = 0.05  # sqrt(electron masses) bohr, over that of the molecule: no turning about this axis


def hessian(molecule: Molecule) -> np.ndarray:
    """Second derivatives in hartree/bohr^2. Raises MoleculeError: it cannot be, is not at rest."""
    calculator = calculator_of(molecule, ACCURACY)
    here = np.array(molecule.positions) * ANGSTROM_IN_BOHR

    def gradient(positions: np.ndarray) -> np.ndarray:
        calculator.update(positions)
        return computed(molecule, calculator)[1]

    force = float(np.linalg.norm(gradient(here), axis=1).max())
    if force > AT_REST:
        raise MoleculeError(
            f"{molecule.name}: not at rest: the largest force is {force:.6f} hartree/bohr,"
            f" expected below {AT_REST}. Optimise it first"
        )
    rows = []
    for shift in np.eye(here.size).reshape(-1, *here.shape) * SHIFT:
        rows.append((gradient(here + shift) - gradient(here - shift)).ravel() / (2 * SHIFT))
    found = np.array(rows)
    return (found + found.T) / 2


def motions(positions: np.ndarray, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the rigid motions and of all others, weighted by mass."""
    from_centre = positions - masses @ positions / masses.sum()
    axes = np.eye(3)
    rigid = [np.tile(axis, (len(masses), 1)) for axis in axes]
    rigid += [np.cross(axis, from_centre) for axis in axes]
    columns = [(one * np.sqrt(masses)[:, None]).ravel() for one in rigid]
    basis, lengths, _ = np.linalg.svd(np.array(columns).T, full_matrices=True)
    count = int((lengths > LINEAR * lengths.max()).sum())
    return basis[:, :count], basis[:, count:]


def frequencies(weighted: np.ndarray) -> np.ndarray:
    """In 1/cm, rising; an imaginary one as negative; from hartree/bohr^2/electron mass."""
    values = np.linalg.eigvalsh(weighted)
    return np.sign(values) * np.sqrt(np.abs(values)) * HARTREE_IN_PER_CM


def vibrations(molecule: Molecule) -> tuple[np.ndarray, float]:
    """The frequencies, and the largest of a rigid motion, in 1/cm. Raises MoleculeError."""
    masses = atomic_masses[list(molecule.numbers)] * UNIT_IN_ELECTRON_MASSES
    root = np.sqrt(np.repeat(masses, 3))
    weighted = hessian(molecule) / np.outer(root, root)
    rigid, others = motions(np.array(molecule.positions) * ANGSTROM_IN_BOHR, masses)
    found = frequencies(others.T @ weighted @ others)
    if found.size and found[0] < 0:
        raise MoleculeError(
            f"{molecule.name}: at rest, but in no minimum: {int((found < 0).sum())} imaginary"
            f" frequencies, the largest {-found[0]:.1f}i/cm"
        )
    return found, float(np.abs(frequencies(rigid.T @ weighted @ rigid)).max())


def run(path: Path, output: Path) -> str:
    """Compute, write the result, return the line to print. Raises MoleculeError, OSError."""
    molecule = read_molecule(path)
    found, rigid = vibrations(molecule)
    zero_point = float(found.sum()) / 2 / HARTREE_IN_PER_CM
    result = {
        "molecule": molecule.name,
        "frequencies_per_cm": [round(float(one), 2) for one in found],
        "zero_point_hartree": round(zero_point, 8),
        "rigid_per_cm": round(rigid, 2),
    }
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return f"{molecule.name}: {len(found)} frequencies, zero-point energy {zero_point:.6f} hartree"


def main() -> None:
    parser = argparse.ArgumentParser(description="Vibrations of one molecule, by GFN2-xTB.")
    parser.add_argument("file", metavar="FILE.xyz", type=Path)
    parser.add_argument(
        "--output", metavar="FILE.json", type=Path, default=Path("frequencies.json")
    )
    options = parser.parse_args()
    try:
        print(run(options.file, options.output))
    except (MoleculeError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
