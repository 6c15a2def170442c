"""wrapping - pure: the words of a task inside its container, after its set-up script.

Owns   how each kind of container is told its folder, its image and its options.
Never  starts anything; looks at the disk only for the programs and the script that are needed.
Fails  SpoolError: a set-up script or a container program that is not there.

The set-up script is sourced on the host, first; the container then starts in the environment that
it made. Several ranks are several containers: the mpirun stands outside.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping

from spool.errors import SpoolError
from spool.queue.kinds import Container
from spool.queue.manifest import Manifest

KINDS = ("apptainer", "singularity", "podman")
_SETUP = 'spool_setup() { . "$SPOOL_SETUP"; }; spool_setup || exit; unset -f spool_setup; exec "$@"'
"""A function without arguments, since a script that is sourced sees those of who sources it."""
Find = Callable[[str], str | None]


def wrapped(
    words: list[str],
    wanted: Manifest,
    folder: str,
    templates: Mapping[str, str],
    find: Find = shutil.which,
) -> list[str]:
    """The words to run in place of a task's own. Raises SpoolError."""
    if wanted.container:
        words = _contained(words, wanted, folder, templates, find)
    if wanted.setup:
        path = setup_path(wanted.setup, folder)
        if not os.path.isfile(path):
            raise SpoolError(f"the set-up script {path} is missing")
        words = ["/bin/sh", "-c", _SETUP, "sh", *words]
    return words


def setup_path(setup: str, folder: str) -> str:
    """Where a set-up script lies: a relative one in the task's directory."""
    return os.path.join(folder, setup)


def _contained(
    words: list[str], wanted: Manifest, folder: str, templates: Mapping[str, str], find: Find
) -> list[str]:
    asked = wanted.container
    assert asked
    one = Container(image=asked) if isinstance(asked, str) else asked
    kind = one.kind or ("default" if "default" in templates else _found(find))
    if kind in templates:
        return _from_template(templates[kind], one, words, folder)
    if kind not in KINDS:
        known = ", ".join((*KINDS, *templates))
        raise SpoolError(f"there is no container kind {kind!r}; known are {known}")
    if find(kind) is None:
        raise SpoolError(f"the container program {kind} is not on PATH")
    if kind == "podman":
        named = sorted({"SPOOL_*", "OMP_NUM_THREADS", *wanted.environment})
        forwarded = [word for name in named for word in ("--env", name)]
        place = ["--rm", "--volume", f"{folder}:{folder}", "--workdir", folder]
        return ["podman", "run", *place, *forwarded, *one.options, one.image, *words]
    gpus = ["--nv"] if wanted.gpus and "--rocm" not in one.options else []
    place = ["--bind", folder, "--pwd", folder]
    return [kind, "exec", *place, *gpus, *one.options, one.image, *words]


def _found(find: Find) -> str:
    for kind in KINDS:
        if find(kind):
            return kind
    tried = ", ".join(KINDS)
    raise SpoolError(
        f"no container program is on PATH (tried {tried}). Say another under [containers] in"
        " spool.toml"
    )


def _from_template(line: str, one: Container, words: list[str], folder: str) -> list[str]:
    made: list[str] = []
    for word in shlex.split(line):
        if word == "{command}":
            made += words
        elif word == "{options}":
            made += one.options
        else:
            made.append(word.replace("{image}", one.image).replace("{folder}", folder))
    return made
