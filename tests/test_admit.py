"""The door: what was dropped into CREATED/ becomes a task once it is at rest, or is rejected."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys

import pytest
from conftest import all_ids, where

from spool import config
from spool.queue import files, history, layout, takeover, tasks
from spool.queue.admit import Door
from spool.queue.layout import State

HELLO = {"command": ["echo", "hello"]}
ID = "scan-7.26112215-00-abcdefghij"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and gives away")


class Clock:
    """A monotonic clock that moves only when told to."""

    now = 100.0

    def __call__(self):
        return self.now

    def forward(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def door(owner, clock):
    return Door(owner, config.trusted_users(), clock)


def arrive(tree, name="run-1", wanted=HELLO, source="", inside=None):
    """Drop a directory into the door: a manifest (a mapping, bytes or None) and other files."""
    path = tree.task(State.CREATED, source and f"@{source}", name)
    os.makedirs(path)
    for inner, content in (inside or {}).items():
        os.makedirs(os.path.dirname(f"{path}/{inner}"), exist_ok=True)
        put(f"{path}/{inner}", content)
    if wanted is not None:
        put(f"{path}/manifest.json", wanted if isinstance(wanted, bytes) else encode(wanted))
    return path


def put(path, content):
    with open(path, "wb") as file:
        file.write(content)


def encode(mapping):
    return json.dumps(mapping).encode()


def rest(door, clock):
    """Two looks with the quiet time between them; how many arrivals were dealt with."""
    dealt_with = 0
    for _ in range(2):
        clock.forward(door.quiet + 0.01)
        dealt_with += door.look()
    return dealt_with


def the_only(tree, state):
    (spot,) = tasks.spots(tree, (state,))
    return spot


def story_of(tree, spot):
    return history.fold(files.read(f"{spot.path(tree)}/{layout.HISTORY}"))


def reason_of(tree):
    """Why the only failed task was rejected; it must be a text fit for a terminal."""
    spot = the_only(tree, State.FAILED)
    assert spot.group.startswith("rejected@")
    reason = story_of(tree, spot).stopped["reason"]
    assert reason.isprintable()
    return reason


# -- what is admitted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    [
        {"what": "change", "set": {"nodes": "many"}},
        {"what": "exit", "attempt": 1, "code": 0},
        {"what": "cancelled", "by": "somebody"},
    ],
    ids=lambda line: line["what"],
)
def test_a_story_brought_along_is_nobody_s_even_if_it_names_its_own_directory(
    tree, door, clock, forged
):
    path = arrive(tree)
    arrived = {"what": "arrived", "nonce": "x", "inode": os.lstat(path).st_ino}
    start = {"what": "start", "attempt": 1, "owner": "x"}
    lines = [history.encode({"time": "", **line}) for line in (arrived, start, forged)]
    put(f"{path}/history.jsonl", b"".join(lines))
    assert rest(door, clock) == 1
    assert the_only(tree, State.READY).id.startswith("run-1.")


def test_an_admission_that_a_full_disk_stopped_is_tried_again(tree, door, clock):
    arrive(tree)
    arrive(tree, "run-2")

    def full(when, operation, arguments):
        if when == "before" and operation == "syncfs":
            raise OSError(errno.ENOSPC, "full")

    files.watch(full)
    try:
        with pytest.raises(OSError, match="full"):
            rest(door, clock)
    finally:
        files.watch(None)
    assert list(tasks.spots(tree, (State.READY, State.FAILED))) == []
    assert door.holding
    rest(door, clock)
    assert len(list(tasks.spots(tree, (State.READY,)))) == 2 and not door.holding


def test_an_arrival_at_rest_goes_to_its_lane_under_a_fresh_id(tree, door, clock):
    arrive(tree, "run-1", {**HELLO, "cores_per_rank": 2}, inside={"in/mesh": b"m"})
    assert rest(door, clock) == 1
    spot = the_only(tree, State.READY)
    assert spot.group.startswith("c2@")
    assert spot.id.startswith("run-1.")
    assert files.read(f"{spot.path(tree)}/in/mesh") == b"m"
    told = story_of(tree, spot).arrived
    assert told["called"] == "run-1"
    assert len(told["nonce"]) == 10
    assert os.listdir(door.owner.claims) == []


def test_an_arrival_is_not_touched_before_it_has_been_quiet(tree, door, clock):
    arrive(tree)
    assert door.look() == 0
    clock.forward(door.quiet * 0.9)
    assert door.look() == 0
    assert os.listdir(tree.state(State.CREATED)) == ["run-1"]


def test_the_manifest_s_name_wins_over_the_directory_s(tree, door, clock):
    arrive(tree, "whatever", {**HELLO, "name": "scan"})
    rest(door, clock)
    assert the_only(tree, State.READY).id.startswith("scan.")


def test_a_name_with_spaces_becomes_an_id_without(tree, door, clock):
    arrive(tree, "my first run")
    rest(door, clock)
    spot = the_only(tree, State.READY)
    assert spot.id.startswith("my-first-run.")
    assert story_of(tree, spot).arrived["called"] == "my first run"


@pytest.mark.parametrize(
    ("key", "group"), [({"hold": True}, "held@"), ({"begin": "2099-01-01"}, "until@9901010000")]
)
def test_an_arrival_may_ask_to_wait(tree, door, clock, key, group):
    arrive(tree, wanted={**HELLO, **key})
    rest(door, clock)
    assert the_only(tree, State.WAITING).group.startswith(group)


def test_one_bad_arrival_does_not_stop_the_good_ones_beside_it(tree, door, clock):
    arrive(tree, "a")
    arrive(tree, "b", b"{")
    os.mkfifo(f"{tree.state(State.CREATED)}/c")
    arrive(tree, "d")
    assert rest(door, clock) == 4
    assert len(list(tasks.spots(tree, (State.READY,)))) == 2
    assert len(list(tasks.spots(tree, (State.FAILED,)))) == 2


def test_a_source_s_door_names_its_source_in_the_lane(tree, door, clock):
    arrive(tree, source="xpcs")
    rest(door, clock)
    spot = the_only(tree, State.READY)
    assert spot.group.startswith("c1.s-xpcs@")
    assert story_of(tree, spot).arrived["source"] == "xpcs"


def test_history_and_output_brought_along_are_kept_aside_and_decide_nothing(tree, door, clock):
    ended = history.line("start", attempt=1) + history.line("exit", attempt=1, code=0)
    brought = {"history.jsonl": ended, "output": b"old", "errors": b"older"}
    arrive(tree, inside=brought)
    rest(door, clock)
    spot = the_only(tree, State.READY)
    for name, content in brought.items():
        assert files.read(f"{spot.path(tree)}/{name}.1") == content
    assert story_of(tree, spot).attempt == 0
    assert not files.exists(f"{spot.path(tree)}/output")


@pytest.mark.parametrize("kind", ["folder", "link", "fifo of another name"])
def test_a_history_that_is_no_plain_file_is_set_aside_too(tree, door, clock, kind):
    path = arrive(tree)
    if kind == "folder":
        os.mkdir(f"{path}/history.jsonl")
    else:
        os.symlink("/etc/passwd", f"{path}/history.jsonl")
    before = files.read("/etc/passwd")
    rest(door, clock)
    spot = the_only(tree, State.READY)
    assert files.is_plain(f"{spot.path(tree)}/history.jsonl")
    assert files.exists(f"{spot.path(tree)}/history.jsonl.1")
    assert files.read("/etc/passwd") == before


def test_links_are_taken_from_a_person_s_door(tree, door, clock):
    path = arrive(tree)
    os.symlink("/usr", f"{path}/data")
    rest(door, clock)
    assert files.exists(f"{the_only(tree, State.READY).path(tree)}/data")


# -- what is still under way ---------------------------------------------------------------------


def test_a_directory_without_a_manifest_is_an_arrival_under_way(tree, door, clock, command):
    arrive(tree, wanted=None, inside={"late.h5": b"x"})
    for _ in range(3):
        assert rest(door, clock) == 0
    found = command("check")
    assert found.returncode == 6
    assert "late data" in found.stdout
    assert os.listdir(tree.state(State.CREATED)) == ["run-1"]


def test_a_slow_writer_is_waited_for_as_long_as_it_writes(tree, door, clock):
    path = arrive(tree)
    for step in range(20):
        with open(f"{path}/data", "ab") as file:
            file.write(b"x")
        assert door.look() == 0, step
        clock.forward(door.quiet * 0.9)
    assert rest(door, clock) == 1
    assert len(files.read(f"{the_only(tree, State.READY).path(tree)}/data")) == 20


def test_a_file_rewritten_with_the_same_size_counts_as_a_change(tree, door, clock):
    path = arrive(tree, inside={"sub/data": b"aaaa"})
    for content in (b"bbbb", b"cccc", b"dddd"):
        assert door.look() == 0
        clock.forward(door.quiet)
        files.replace(f"{path}/sub/data", content)
    assert door.look() == 0
    assert rest(door, clock) == 1


@pytest.mark.parametrize(
    "name",
    [".data.h5.a1B2c3", ".~tmp~", ".rsync-partial", "data.part", "x.filepart", ".nfs00a1", "y.tmp"],
)
def test_a_transfer_s_temporary_keeps_an_arrival_out(tree, door, clock, name):
    path = arrive(tree, inside={f"deep/{name}": b""})
    for _ in range(3):
        assert rest(door, clock) == 0
    os.unlink(f"{path}/deep/{name}")
    assert rest(door, clock) == 1


def test_a_manifest_half_written_is_waited_for(tree, door, clock):
    path = arrive(tree, wanted=b'{"command": ["ec')
    assert door.look() == 0
    clock.forward(door.quiet * 0.9)
    put(f"{path}/manifest.json", encode(HELLO))
    assert door.look() == 0
    assert rest(door, clock) == 1
    assert the_only(tree, State.READY)


def test_an_arrival_waits_for_its_declared_inputs(tree, door, clock):
    path = arrive(tree, wanted={**HELLO, "inputs": ["in/mesh.h5"]})
    for _ in range(5):
        assert rest(door, clock) == 0
    os.mkdir(f"{path}/in")
    put(f"{path}/in/mesh.h5", b"mesh")
    assert rest(door, clock) == 1


def test_inputs_that_verify_are_taken_at_once(tree, door):
    digest = hashlib.sha256(b"mesh").hexdigest()
    wanted = {**HELLO, "inputs": [{"path": "mesh", "sha256": digest, "size": 4}]}
    path = arrive(tree, wanted=wanted)
    assert door.look() == 0
    put(f"{path}/mesh", b"mesh")
    door.clock.forward(door.quiet / 2)
    assert door.look() == 1
    assert the_only(tree, State.READY)


def test_one_input_without_proof_means_waiting_for_rest(tree, door, clock):
    digest = hashlib.sha256(b"mesh").hexdigest()
    inputs = [{"path": "mesh", "sha256": digest}, "other"]
    arrive(tree, wanted={**HELLO, "inputs": inputs}, inside={"mesh": b"mesh", "other": b""})
    assert door.look() == 0
    assert rest(door, clock) == 1


def test_an_arrival_that_changes_as_it_is_claimed_is_held_until_quiet(tree, door, clock):
    path = arrive(tree)

    def write_on(when, operation, arguments):
        if (when, operation) == ("after", "rename") and arguments[0] == path:
            put(f"{arguments[1]}/data", b"late")

    files.watch(write_on)
    assert rest(door, clock) == 0
    files.watch(None)
    (arrival,) = door.holding
    held = door.owner.claim_path(arrival.held)
    for step in range(3):
        put(f"{held}/data", b"later" * step)
        clock.forward(door.quiet * 0.9)
        assert door.look() == 0
    assert os.listdir(tree.state(State.CREATED)) == []
    clock.forward(door.quiet)
    assert door.look() == 1
    assert files.read(f"{the_only(tree, State.READY).path(tree)}/data") == b"laterlater"
    assert door.holding == []


def test_a_held_arrival_that_somebody_removes_is_forgotten(tree, door, clock):
    path = arrive(tree)

    def write_on(when, operation, arguments):
        if (when, operation) == ("after", "rename") and arguments[0] == path:
            put(f"{arguments[1]}/data", b"late")

    files.watch(write_on)
    rest(door, clock)
    files.watch(None)
    files.remove_tree(door.owner.claim_path(door.holding[0].held))
    rest(door, clock)
    assert door.holding == []
    assert list(tasks.spots(tree, (State.READY,))) == []


# -- what is rejected ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"\0" * 64, "is empty"),
        (b"{", "is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"command": ["x"], "colour": 1}', "unknown key 'colour'"),
        (b'{"command": ["x"], "cores_per_rank": 0}', "cores_per_rank"),
        (b'{"command": ["x"], "command": ["y"]}', "key 'command' stands twice"),
        (b'{"command": ["x"], "data": {"a": 1, "a": 2}}', "key 'a' stands twice"),
        (b'{"app": "missing"}', "there is no app 'missing'"),
        (b'{"app": "../../etc/passwd"}', "is no name"),
        (b"{}", "needs 'command'"),
        (b'{"command": ["x"], "inputs": ["../../etc/passwd"]}', "relative path"),
        (b" " * (1 << 20) + b"{}", "is larger than"),
    ],
)
def test_a_bad_manifest_is_rejected_with_what_is_wrong(tree, door, clock, raw, words):
    arrive(tree, wanted=raw, inside={"data": b"kept"})
    assert rest(door, clock) == 1
    assert words in reason_of(tree)
    spot = the_only(tree, State.FAILED)
    assert files.read(f"{spot.path(tree)}/data") == b"kept"
    assert files.read(f"{spot.path(tree)}/manifest.json") == raw


def linked(path):
    put(f"{path}/real", encode(HELLO))
    os.symlink("real", f"{path}/manifest.json")


def twice_linked(path):
    put(f"{path}/manifest.json", encode(HELLO))
    os.link(f"{path}/manifest.json", f"{path}/second")


def writable(path):
    put(f"{path}/manifest.json", encode(HELLO))
    os.chmod(f"{path}/manifest.json", 0o666)


def with_socket(path):
    put(f"{path}/manifest.json", encode(HELLO))
    here = os.getcwd()
    os.chdir(path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s")
    os.chdir(here)


def with_fifo(path):
    put(f"{path}/manifest.json", encode(HELLO))
    os.makedirs(f"{path}/a/b")
    os.mkfifo(f"{path}/a/b/pipe\n")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (linked, "manifest.json is a link"),
        (twice_linked, "manifest.json has a second hard link"),
        (writable, "manifest.json can be written by everyone"),
        (lambda path: os.mkfifo(f"{path}/manifest.json"), "'manifest.json', which is a FIFO"),
        (lambda path: os.mkdir(f"{path}/manifest.json"), "manifest.json is no plain file"),
        (with_socket, "'s', which is a FIFO, a socket"),
        (with_fifo, "'a/b/pipe\\\\n', which is a FIFO"),
    ],
)
def test_a_hostile_arrival_is_rejected_with_what_is_wrong(tree, door, clock, make, words):
    make(arrive(tree, wanted=None))
    assert rest(door, clock) == 1
    assert words in reason_of(tree)


@pytest.mark.parametrize("kind", ["link", "link to nothing", "fifo", "socket"])
def test_what_is_no_directory_is_rejected_inside_a_fresh_task(tree, door, clock, kind, command):
    elsewhere = os.path.dirname(tree.root) + "/elsewhere"
    arrive(tree, "good")
    os.rename(f"{tree.state(State.CREATED)}/good", elsewhere)
    path = f"{tree.state(State.CREATED)}/odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            os.chdir(os.path.dirname(path))
            one.bind("odd")
    else:
        os.symlink(elsewhere if kind == "link" else "nothing", path)
    assert rest(door, clock) == 1
    assert "not a directory" in reason_of(tree)
    spot = the_only(tree, State.FAILED)
    assert stat.S_IFMT(os.lstat(f"{spot.path(tree)}/arrival").st_mode) != stat.S_IFDIR
    assert os.listdir(elsewhere) == ["manifest.json"]
    answer = command("retry", spot.id)
    assert answer.returncode == 1
    assert "no usable directory" in answer.stderr


def test_a_plain_file_in_the_door_is_left_and_listed(tree, door, clock, command):
    put(f"{tree.state(State.CREATED)}/tasks.tar", b"x")
    assert rest(door, clock) == 0
    found = command("check")
    assert found.returncode == 6
    assert "tasks.tar" in found.stdout


@pytest.mark.parametrize("name", [b"two\nlines", b"\xff\xfe", b"esc\x1b[31m", "‮rev".encode()])
def test_a_name_that_is_no_plain_text_is_rejected(tree, door, clock, name):
    arrive(tree, os.fsdecode(name))
    assert rest(door, clock) == 1
    assert "no plain text" in reason_of(tree)
    assert the_only(tree, State.FAILED).id.isascii()


def test_names_inside_an_arrival_may_be_anything(tree, door, clock):
    arrive(tree, inside={os.fsdecode(b"\xff\n x"): b"1"})
    assert rest(door, clock) == 1
    assert the_only(tree, State.READY)


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc", "nowhere"])
def test_links_are_refused_from_a_source_s_door(tree, door, clock, target):
    path = arrive(tree, source="xpcs", inside={"sub/data": b""})
    os.symlink(target, f"{path}/sub/link")
    assert rest(door, clock) == 1
    assert "holds 'sub/link', a link" in reason_of(tree)


def test_a_source_s_door_that_is_a_link_leads_nowhere(tree, door, clock):
    elsewhere = os.path.dirname(tree.root) + "/elsewhere"
    arrive(tree, "good")
    os.mkdir(elsewhere)
    os.rename(f"{tree.state(State.CREATED)}/good", f"{elsewhere}/good")
    os.symlink(elsewhere, f"{tree.state(State.CREATED)}/@evil")
    assert rest(door, clock) == 0
    assert os.listdir(elsewhere) == ["good"]


def test_a_wrong_checksum_is_waited_for_and_then_rejected(tree, door, clock):
    wanted = {**HELLO, "inputs": [{"path": "mesh", "sha256": "0" * 64}]}
    arrive(tree, wanted=wanted, inside={"mesh": b"mesh"})
    assert door.look() == 0
    clock.forward(door.quiet)
    assert door.look() == 1
    assert "input 'mesh' has sha256" in reason_of(tree)


def test_a_wrong_size_is_rejected(tree, door, clock):
    wanted = {**HELLO, "inputs": [{"path": "mesh", "size": 5}]}
    arrive(tree, wanted=wanted, inside={"mesh": b"mesh"})
    rest(door, clock)
    assert "has 4 bytes, the manifest says 5" in reason_of(tree)


def test_an_input_that_is_a_link_proves_nothing(tree, door, clock):
    digest = hashlib.sha256(files.read("/etc/passwd")).hexdigest()
    path = arrive(tree, wanted={**HELLO, "inputs": [{"path": "mesh", "sha256": digest}]})
    os.symlink("/etc/passwd", f"{path}/mesh")
    rest(door, clock)
    assert "unreadable" in reason_of(tree)


def nest(path, name, depth):
    """Folders in folders, deeper than one path can say."""
    here = os.getcwd()
    os.chdir(path)
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    os.chdir(here)


def test_a_path_longer_than_the_system_allows_stops_nobody(tree, door, clock):
    nest(arrive(tree, "deep"), "d" * 250, 20)
    arrive(tree, "good")
    rest(door, clock)
    assert the_only(tree, State.READY).id.startswith("good.")
    assert "File name too long" in reason_of(tree)
    subprocess.run(["rm", "-rf", the_only(tree, State.FAILED).path(tree)], check=True)


def test_folders_nested_a_thousand_deep_stop_nobody(tree, door, clock):
    nest(arrive(tree), "a", 1500)
    rest(door, clock)
    spot = the_only(tree, State.READY)
    subprocess.run(["rm", "-rf", spot.path(tree)], check=True)


@as_root
def test_a_device_is_rejected(tree, door, clock):
    path = arrive(tree)
    os.mknod(f"{path}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    rest(door, clock)
    assert "'null', which is a FIFO, a socket or a device" in reason_of(tree)


@as_root
def test_a_device_in_the_door_itself_is_rejected(tree, door, clock):
    os.mknod(f"{tree.state(State.CREATED)}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    rest(door, clock)
    assert "not a directory" in reason_of(tree)


@as_root
@pytest.mark.parametrize("part", ["", "/manifest.json"])
def test_what_belongs_to_somebody_not_trusted_is_rejected(tree, door, clock, part):
    path = arrive(tree)
    os.chown(path + part, 65534, 65534)
    rest(door, clock)
    assert "belongs to user 65534, who is not trusted" in reason_of(tree)


@as_root
def test_what_belongs_to_somebody_trusted_is_admitted(tree, owner, clock):
    path = arrive(tree)
    os.chown(path, 65534, 65534)
    os.chown(f"{path}/manifest.json", 65534, 65534)
    assert rest(Door(owner, frozenset((0, 65534)), clock), clock) == 1
    assert the_only(tree, State.READY)


def test_an_unreadable_folder_inside_keeps_only_its_own_arrival_out(tree):
    """As a user whom permissions bind: root is none."""
    path = arrive(tree, "locked", inside={"sub/x": b""})
    arrive(tree, "good")
    os.chmod(f"{path}/sub", 0)
    answer = subprocess.run(
        [*unprivileged(), sys.executable, "-c", LOOK_TWICE, tree.root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert the_only(tree, State.READY).id.startswith("good.")
    assert reason_of(tree) == "holds 'sub/', which cannot be read: Permission denied"


def unprivileged():
    """How to run a command as a user whom permissions bind, who still owns our files."""
    return ["unshare", "--user", "--map-user=1000"] if os.geteuid() == 0 else []


LOOK_TWICE = """
import sys
from spool import config
from spool.queue.admit import Door
from spool.queue.layout import Tree
from spool.queue.owner import Owner
tree, now = Tree(sys.argv[1]), [0.0]
owner = Owner.start(tree, config.load(tree.root), "launcher")
door = Door(owner, config.trusted_users(), lambda: now[0])
for _ in range(4):
    door.look()
    now[0] += 1.0
owner.end()
"""


# -- ids that come along -------------------------------------------------------------------------


def test_a_well_formed_id_is_kept_and_remembered(tree, door, clock):
    arrive(tree, ID)
    rest(door, clock)
    assert where(tree, ID).startswith("READY/c1@26112215-00")
    nonce = story_of(tree, the_only(tree, State.READY)).arrived["nonce"]
    assert files.read(tree.seen(ID)) == nonce.encode()


@pytest.mark.parametrize("fate", ["queued", "finished", "removed"])
def test_a_second_arrival_of_an_id_is_a_duplicate_whatever_became_of_the_first(
    tree, door, clock, fate, command
):
    arrive(tree, ID)
    rest(door, clock)
    if fate != "queued":
        shard = layout.shard_of(ID)
        files.move(tree.root + f"/{where(tree, ID)}/{ID}", tree.task(State.FINISHED, shard, ID))
    if fate == "removed":
        assert command("rm", ID).returncode == 0
    arrive(tree, ID, inside={"second": b"2"})
    rest(door, clock)
    spot = the_only(tree, State.FAILED)
    assert spot.group == "duplicate@26112215-00"
    assert spot.id != ID
    assert spot.id.startswith("scan-7.26112215-00-")
    assert f"came as {ID}" in story_of(tree, spot).stopped["reason"]
    assert files.read(f"{spot.path(tree)}/second") == b"2"
    assert all_ids(tree).count(ID) == (fate != "removed")


def test_an_arrival_under_the_id_of_a_submitted_task_is_a_duplicate(tree, spool, door, clock):
    task = spool.submit(["true"])
    arrive(tree, task.id)
    rest(door, clock)
    assert where(tree, task.id).startswith("READY/")
    assert the_only(tree, State.FAILED).group.startswith("duplicate@")


def test_the_same_id_in_two_doors_runs_once(tree, door, clock):
    arrive(tree, ID)
    arrive(tree, ID, source="xpcs")
    rest(door, clock)
    clock.forward(60)
    rest(door, clock)
    assert the_only(tree, State.READY).id == ID
    assert the_only(tree, State.FAILED).group.startswith("duplicate@")


def test_a_rejected_id_may_be_delivered_again(tree, door, clock):
    arrive(tree, ID, b"{")
    rest(door, clock)
    assert story_of(tree, the_only(tree, State.FAILED)).stopped["called"] == ID
    arrive(tree, ID)
    rest(door, clock)
    assert where(tree, ID).startswith("READY/")


def test_a_rejected_arrival_runs_once_its_manifest_is_mended(tree, door, clock, command):
    told = history.line("change", set={"priority": 9}) + history.line("start", attempt=7)
    arrive(tree, ID, b'{"comand": ["true"]}', inside={"history.jsonl": told})
    rest(door, clock)
    spot = the_only(tree, State.FAILED)
    refused = command("retry", spot.id)
    assert refused.returncode == 1
    assert "did you mean 'command'" in refused.stderr
    put(f"{spot.path(tree)}/manifest.json", encode(HELLO))
    assert command("retry", spot.id).returncode == 0
    story = story_of(tree, the_only(tree, State.READY))
    assert (story.attempt, story.stopped, story.changes) == (0, None, {})


def test_an_arrival_can_be_cancelled_before_it_is_admitted(tree, door, clock, command):
    arrive(tree, "run-1", inside={"data": b"kept"})
    command("cancel", "run-1", "--reason", "wrong beam")
    spot = the_only(tree, State.CANCELLED)
    assert spot.id.startswith("run-1.")
    assert files.read(f"{spot.path(tree)}/data") == b"kept"
    assert story_of(tree, spot).cancelled["reason"] == "wrong beam"
    assert rest(door, clock) == 0


# -- killed on the way ---------------------------------------------------------------------------

KILLED = """
import os, sys, time
from spool import config
from spool.queue import files
from spool.queue.admit import Door
from spool.queue.layout import Tree
from spool.queue.owner import Owner
tree, operation, part = Tree(sys.argv[1]), sys.argv[2], sys.argv[3]
owner = Owner.start(tree, config.load(tree.root), "launcher")
now = [0.0]
door = Door(owner, config.trusted_users(), lambda: now[0])

def die(when, what, arguments):
    if (when, what) == ("after", operation) and part in repr(arguments):
        os._exit(9)

files.watch(die)
for _ in range(3):
    door.look()
    now[0] += 1.0
"""


@pytest.mark.parametrize(
    ("name", "operation", "part"),
    [
        ("run-1", "rename", "/CREATED/"),
        ("run-1", "create", "history.jsonl"),
        (ID, "rename", "/CREATED/"),
        (ID, "write", "arrived"),
        (ID, "syncfs", ""),
        (ID, "link", "/seen/"),
    ],
)
def test_an_admission_killed_midway_is_finished_by_a_taker(tree, owner, name, operation, part):
    old = history.line("arrived", nonce="x", called="other") + history.line("exit", code=0)
    arrive(tree, name, inside={"history.jsonl": old})
    killed = subprocess.run([sys.executable, "-c", KILLED, tree.root, operation, part], check=False)
    assert killed.returncode == 9
    (group,) = (g for g in os.listdir(tree.state(State.RUNNING)) if g != owner.name)
    takeover.take_over(owner, group, config.trusted_users())
    spot = the_only(tree, State.READY)
    raw = files.read(f"{spot.path(tree)}/history.jsonl")
    assert [event["what"] for event in history.events(raw)] == ["arrived"]
    assert files.read(f"{spot.path(tree)}/history.jsonl.1") == old
    assert (spot.id == ID) == (name == ID)
    assert files.exists(tree.seen(ID)) == (name == ID)
    assert os.listdir(tree.state(State.RUNNING)) == [owner.name]
    assert all_ids(tree) == [spot.id]


def test_a_source_s_arrival_keeps_its_source_through_a_takeover(tree, owner):
    path = arrive(tree, source="xpcs")
    os.symlink("/etc", f"{path}/link")
    words = [sys.executable, "-c", KILLED, tree.root, "rename", "/CREATED/"]
    assert subprocess.run(words, check=False).returncode == 9
    (group,) = (g for g in os.listdir(tree.state(State.RUNNING)) if g != owner.name)
    takeover.take_over(owner, group, config.trusted_users())
    assert "holds 'link', a link" in reason_of(tree)
