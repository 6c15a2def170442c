#!/usr/bin/env python3
"""write_molecules - write the 162 molecules of ASE's G2 collection as xyz files.

    write_molecules.py DIR                  DIR/NAME.xyz for every molecule
    write_molecules.py DIR --spoil NAME     the same, one of them unreadable on purpose
    write_molecules.py DIR --only NAME      (re)write this molecule and no other

The comment line carries what the geometry cannot say, e.g. `charge=0 unpaired=1`.

Prints  one line: how many, where.
Fails   exit 2 and a sentence: no such molecule, no such folder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from ase import Atoms
from ase.collections import g2

NO_ELEMENT = "Qq"


def stems(names: Iterable[str]) -> dict[str, str]:
    """A file stem for each name: safe characters only, no two alike even if case is ignored."""
    stem_of: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9._+-]", "_", name)
        stem = base = safe if safe[:1].isalnum() else f"m{safe}"
        number = 1
        while stem.lower() in taken:
            number += 1
            stem = f"{base}-{number}"
        taken.add(stem.lower())
        stem_of[name] = stem
    return stem_of


def xyz(atoms: Atoms, name: str) -> str:
    """The molecule as xyz text, angstrom."""
    charge = round(sum(atoms.get_initial_charges()))
    unpaired = round(sum(atoms.get_initial_magnetic_moments()))
    lines = [str(len(atoms)), f"{name} charge={charge} unpaired={unpaired}"]
    for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True):
        lines.append(f"{symbol:<2} {x:13.8f} {y:13.8f} {z:13.8f}")
    return "\n".join(lines) + "\n"


def spoil(text: str) -> str:
    """The xyz text with the symbol of its first atom replaced by one no element has."""
    count, comment, first, *others = text.splitlines(keepends=True)
    return "".join([count, comment, f"{NO_ELEMENT:<2}{first[2:]}", *others])


def write(folder: Path, names: list[str], spoiled: str | None) -> None:
    """Write the named molecules into folder, made if it is missing."""
    stem_of = stems(g2.names)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        text = xyz(g2[name], name)
        path = folder / f"{stem_of[name]}.xyz"
        path.write_text(spoil(text) if name == spoiled else text, encoding="utf-8")


def molecule(name: str) -> str:
    """The name, if G2 has such a molecule."""
    if name not in g2.names:
        raise argparse.ArgumentTypeError(f"the G2 collection has no molecule {name!r}")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the G2 molecules as xyz files.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write NAME.xyz")
    parser.add_argument("--only", metavar="NAME", type=molecule, help="write this molecule only")
    parser.add_argument("--spoil", metavar="NAME", type=molecule, help="make this one unreadable")
    options = parser.parse_args()
    names = [options.only] if options.only else list(g2.names)
    try:
        write(options.folder, names, options.spoil)
    except OSError as error:
        parser.error(str(error))
    note = f", {options.spoil} spoiled on purpose" if options.spoil in names else ""
    print(f"{options.folder}: wrote {len(names)} of {len(g2.names)} molecules{note}")


if __name__ == "__main__":
    main()
