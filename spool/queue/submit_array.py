"""submit_array - an array becomes its chunks, all of them visible by one rename.

Owns   the file `values` of a chunk: a JSON value a line, one for each of its elements.
Fails  ManifestError: this cannot be an array. Else as submit.
"""

from __future__ import annotations

import io
from itertools import islice

import msgspec

from spool.errors import ManifestError
from spool.queue import array, files, layout, stages, tasks
from spool.queue.layout import Tree
from spool.queue.manifest import Manifest
from spool.queue.sound import check
from spool.queue.submit import Fill, Submitter


def submit_array(
    tree: Tree,
    wanted: Manifest,
    values: bytes | None = None,
    *,
    chunk: int = 0,
    fill: Fill | None = None,
) -> list[str]:
    """Submit an array durably; the ids of its chunks, in order.

    `wanted.array` says which elements; values are the lines for those that have one, JSON each.
    A chunk holds `chunk` elements; 0: as the length of an element suggests.
    """
    check(wanted, "array")
    if (numbers := wanted.elements) is None or wanted.chunk:
        raise ManifestError("array: needs 'array', its elements, and no 'chunk'")
    if others := [cause for cause in wanted.retry if cause != stages.LOST]:
        raise ManifestError(
            f"key 'retry': {others[0]}: elements try again by max_attempts and backoff;"
            f" a chunk by {stages.LOST!r} alone"
        )
    size = chunk or array.chunk_size(numbers.size, wanted.estimate_s)
    if -(-numbers.size // size) > array.MOST_CHUNKS:
        least = -(-numbers.size // array.MOST_CHUNKS)
        raise ManifestError(
            f"array: chunks of {size} would be more than {array.MOST_CHUNKS:,};"
            f" allowed is --chunk {least} or more"
        )
    lines = io.BytesIO(values) if values is not None else None
    shown: list[str] = []
    with Submitter(tree, shown.extend, hold_back=True) as submitter:
        array_id = submitter.fresh_id(wanted)
        if wanted.key:  # its first chunk stands for all
            first = f"{array_id}@{next(array.cut(numbers, size)).chunk}"
            known, ours = submitter.first(wanted.key, first)
            array_id = layout.array_of(known)
            if not ours:
                return [spot.id for spot in tasks.chunks(tree, array_id)] or [known]
        for part in array.cut(numbers, size):
            one = msgspec.structs.replace(wanted, chunk=part.chunk)
            one.__dict__.update(wanted.__dict__)  # what was said, for its app
            submitter.add(one, _filler(fill, lines, part.size), array=array_id)
        submitter.finish()
    return shown


def _filler(fill: Fill | None, lines: io.BytesIO | None, count: int) -> Fill | None:
    """What puts a chunk's own lines of `values` beside its manifest."""
    if lines is None:
        return fill
    own = b"".join(islice(lines, count))

    def filled(built: str) -> None:
        if fill:
            fill(built)
        files.write_new(f"{built}/{layout.VALUES}", own)

    return filled
