"""script - the job script of an allocation: a template that a person can see and edit.

Owns   the default template, its places, the launcher's command line inside an allocation.
Never  runs anything.
Fails  SpoolError: a template that cannot be read, lacks the launcher or names an unknown place.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence

from spool.errors import SpoolError
from spool.queue.allocations import VARIABLE
from spool.queue.layout import Tree

TEMPLATE = f"""\
#!/bin/sh
{{{{head}}}}

# {{{{name}}}}: {{{{why}}}}
{{{{setup}}}}
export SPOOL={{{{root}}}}
export {VARIABLE}={{{{name}}}}
exec {{{{launcher}}}}
"""
PLACES = ("head", "name", "why", "setup", "root", "launcher", "nodes", "queue", "walltime_s")
NEEDED = ("head", "name", "launcher")
_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def template(tree: Tree, file: str) -> str:
    """The template of spool.toml's `service.template`, or our own. Raises SpoolError."""
    if not file:
        return TEMPLATE
    path = f"{tree.root}/{file}"
    try:
        with open(path, encoding="utf-8") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as fault:
        raise SpoolError(f"{path}: service.template cannot be read: {fault}") from None
    named = set(_PLACE.findall(text))
    if unknown := sorted(named - set(PLACES)):
        allowed = ", ".join(f"{{{{{place}}}}}" for place in PLACES)
        raise SpoolError(f"{path}: unknown place {{{{{unknown[0]}}}}}; there are {allowed}")
    if missing := [place for place in NEEDED if place not in named]:
        raise SpoolError(
            f"{path}: lacks {{{{{missing[0]}}}}}; `spool service --template` prints the usual one"
        )
    return text


def filled(
    text: str,
    tree: Tree,
    *,
    head: Sequence[str],
    name: str,
    why: str,
    setup: Sequence[str],
    options: Sequence[str],
    **more: object,
) -> str:
    """The script for one allocation; options are the launcher's."""
    places = {
        "head": "\n".join(head),
        "name": name,
        "why": " ".join(why.split()),
        "setup": "\n".join(setup),
        "root": shlex.quote(tree.root),
        "launcher": launcher(tree, options),
        **{key: str(value) for key, value in more.items()},
    }
    return _PLACE.sub(lambda found: places[found[1]], text)


def launcher(tree: Tree, options: Sequence[str]) -> str:
    """A launcher's command line, whatever PATH a job finds."""
    program = [sys.executable, "-P", "-m", "spool.cli", "--spool", os.path.abspath(tree.root)]
    return shlex.join([*program, "launcher", "--quiet", *options])
