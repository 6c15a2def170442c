"""arriving - why something still lies at the door (CREATED), or in the hands of who admits it.

Never  waits to see whether it still changes: change times tell a person well enough.
"""

from __future__ import annotations

import os

import msgspec

from spool import units
from spool.errors import ManifestError, NoSuchTask
from spool.queue import complete, files, layout, manifest, tasks
from spool.queue.claim import printable
from spool.queue.layout import State, Tree
from spool.queue.manifest import Manifest
from spool.queue.tasks import Spot
from spool.queue.why.answer import Answer, listed
from spool.queue.why.scene import RUN_ONE, Living, Scene


def held(tree: Tree, task_id: str) -> Spot | None:
    """Where an arrival of this id lies that an owner is just admitting; None: nobody is."""
    for group in tasks.groups(tree, State.RUNNING):
        for name in files.names(tree.group(State.RUNNING, group)):
            if name.endswith(layout.ARRIVING) and layout.parse_arriving(name)[0] == task_id:
                return Spot(State.RUNNING, group, name)
    return None


def explain(scene: Scene, spot: Spot, answer: Answer) -> None:
    """Why nobody has taken it up yet. Raises NoSuchTask: it is gone."""
    path = spot.path(scene.tree)
    kind = complete.kind_of(path)
    if kind == "gone":
        raise NoSuchTask(f"{printable(spot.id)} has just left CREATED. Run: spool ls")
    if kind == "file":
        answer.because("file", "it is a file; only a directory with a manifest.json becomes a task")
        answer.advise("put it into a directory of its own, with a manifest.json")
        return
    if kind == "other":
        answer.because("rejected", "it is a link, a FIFO or a device, so it will be rejected")
    elif not _lacks_something(scene, spot, path, answer):
        _when_complete(scene, path, answer)
    _who_looks(scene, answer)


def _lacks_something(scene: Scene, spot: Spot, path: str, answer: Answer) -> bool:
    """Tell what is still to come; whether anything is."""
    if not files.exists(f"{path}/{layout.MANIFEST}"):
        _without_manifest(scene, spot, answer)
        return True
    if name := _temporary(path):
        text = f"a transfer is under way: {name} is the name of an unfinished file"
        answer.because("transfer", text, file=printable(name))
        return True
    wanted = complete.peek(path)
    if wanted is None or not (lacking := complete.missing(path, wanted)):
        return False
    text = f"{units.count(len(lacking), 'declared input')} not there yet: {listed(lacking)}"
    answer.because("inputs", text, missing=[printable(one) for one in lacking])
    return True


def _without_manifest(scene: Scene, spot: Spot, answer: Answer) -> None:
    if layout.parse_id(spot.id) and (known := tasks.find(scene.tree, spot.id, looks=2)):
        text = f"this came late: the task of this id is in {known.state}/{known.group} already"
        answer.because("late", text, where=f"{known.state}/{known.group}")
        answer.advise(f"move what you need into {known.path(scene.tree)}, and remove the rest")
        return
    answer.because("no-manifest", "it holds no manifest.json yet: a transfer is under way")
    answer.advise("send manifest.json last; nothing is taken up without it")


def _temporary(path: str) -> str:
    """The first file in it with a name that transfers give to what is unfinished."""
    try:
        names = (name for name, _ in complete.below(path))
        return next((name for name in names if complete.is_temporary(name)), "")
    except OSError:
        return ""


def _when_complete(scene: Scene, path: str, answer: Answer) -> None:
    """All is there: it has to be quiet for a while, or to be looked at."""
    quiet_s = scene.settings.door_quiet_s
    still_s = scene.now - _last_change(path)
    if still_s < quiet_s:
        text = (
            f"it changed {units.print_age(still_s)} ago; once it is quiet for"
            f" {units.print_duration(quiet_s)} it counts as complete"
        )
        answer.because("changing", text, changed_s=round(still_s, 1), quiet_s=quiet_s)
    else:
        answer.because("complete", "it is complete, and is taken up at the next look at the door")
    if why := _wrong(path):
        answer.because("rejected", f"then it will be rejected: {why}")
        answer.advise("mend it there, before somebody looks")


def _last_change(path: str) -> float:
    try:
        changes = (about.st_ctime for _, about in complete.below(path))
        return max(changes, default=0.0)
    except OSError:
        return 0.0


def _wrong(path: str) -> str:
    """What of its manifest or its inputs is wrong; no large file is hashed for it."""
    try:
        raw = files.read(f"{path}/{layout.MANIFEST}", files.LARGEST_MANIFEST + 1)
        wanted = manifest.parse(raw or b"", layout.MANIFEST)
    except (ManifestError, OSError) as fault:
        return str(fault)
    return _wrong_size(path, wanted)


def _wrong_size(path: str, wanted: Manifest) -> str:
    plain = (msgspec.structs.replace(item, sha256="") for item in wanted.input_list)
    return next(filter(None, (complete.wrong_input(path, item) for item in plain)), "")


def _who_looks(scene: Scene, answer: Answer) -> None:
    able = [one for one in scene.lookers if _may_look(one)]
    if able:
        called = listed([one.called for one in able], 2)
        answer.because("door", f"the door is looked after by {called}", lookers=len(able))
        return
    answer.because("nobody", "nobody looks at the door: no launcher and no service is at work")
    answer.advise(f"run: {RUN_ONE}")


def _may_look(one: Living) -> bool:
    """A launcher that drains looks no more."""
    return not one.record.get("draining")


def explain_held(scene: Scene, spot: Spot, answer: Answer) -> None:
    """An arrival that an owner has in hand: ID~new."""
    one = scene.owner_of(spot.group)
    task_id, source = layout.parse_arriving(spot.id)
    door = f" of source {source}" if source else ""
    quiet = units.print_duration(scene.settings.door_quiet_s)
    answer.because(
        "admitted",
        f"it came by the door{door} and is being admitted by {one.called}, which keeps it"
        f" until it is quiet for {quiet} and has been checked",
        owner=one.name,
        alive=one.verdict,
    )
    still_s = scene.now - _last_change(spot.path(scene.tree))
    answer.because("changing", f"it last changed {units.print_age(still_s)} ago")
    if not one.alive:
        answer.because("owner", f"{one.called} is {one.verdict}: another finishes the admission")
        if why := scene.nobody_looks():
            answer.because("nobody", why)
            answer.advise(f"run: {RUN_ONE}")
    answer.id = printable(task_id)
    answer.path = printable(os.path.join(scene.tree.group(State.RUNNING, spot.group), spot.id))
