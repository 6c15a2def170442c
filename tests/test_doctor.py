"""doctor: on real file systems, good and bad, it tells the truth and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from spool import config
from spool.errors import FileSystemFault
from spool.queue import doctor, files, ground, layout, rates
from spool.queue.layout import State, Tree

NOBODY = 65534


def make_tree(root):
    root.mkdir(exist_ok=True)
    for name in layout.FOLDERS:
        (root / name).mkdir()
    (root / layout.SETTINGS).write_text(config.TEMPLATE)
    return Tree(str(root))


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "spool")


def examined(tree):
    return {finding.check: finding for finding in doctor.examine(tree, rate_s=0.01)}


def contents(root):
    return sorted(f"{folder}/{name}" for folder, *names in os.walk(root) for name in sum(names, []))


@contextmanager
def mounted(where, *options):
    """Mount something for real, or skip with the reason why that is not possible here."""
    made = subprocess.run(["mount", *options, str(where)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextmanager
def watching(watcher):
    files.watch(watcher)
    try:
        yield
    finally:
        files.watch(None)


def refusing(operation, fault, part=""):
    """A watcher that lets an operation fail on paths that contain `part`."""

    def refuse(moment, name, arguments):
        if moment == "before" and name == operation and part in str(arguments):
            raise OSError(fault, os.strerror(fault))

    return refuse


# -- a good file system --------------------------------------------------------------------------


def test_this_disk_can_hold_a_spool(tree):
    found = examined(tree)
    assert [finding for finding in found.values() if finding.verdict == "fail"] == []
    assert {*ground.LOOKS, "writable", "moves", *doctor.PROBES, "speed", "tools"} == set(found)
    assert all(finding.says and "\n" not in finding.says for finding in found.values())


def test_nothing_is_left_behind(tree):
    before = contents(tree.root)
    examined(tree)
    doctor.prove(tree)
    assert contents(tree.root) == before


def test_an_examination_that_is_broken_off_leaves_nothing_behind(tree):
    before = contents(tree.root)
    for stop in (*ground.LOOKS, "writable", "moves", "case", "claims"):
        running = doctor.examine(tree, rate_s=0.01)
        assert any(finding.check == stop for finding in running)
        running.close()
    assert contents(tree.root) == before


def test_tasks_are_left_alone(tree):
    for state in State:
        group = "c1@26112215-4k"
        path = tree.task(state, group, "t.26112215-4k-k3f9x2q7bd")
        files.make_folder(path)
        files.write_new(f"{path}/{layout.MANIFEST}", b"{}")
    before = {path: os.lstat(path).st_mtime_ns for path in contents(tree.root) if "c1@" in path}
    examined(tree)
    doctor.prove(tree)
    assert {path: os.lstat(path).st_mtime_ns for path in before} == before


def test_only_tmp_and_dotted_names_are_ever_changed(tree):
    seen = []

    def note(moment, operation, arguments):
        if operation not in ("list", "stat", "open"):
            seen.extend(word for word in arguments if isinstance(word, str))

    with watching(note):
        examined(tree)
    inner = {path.removeprefix(f"{tree.root}/") for path in seen}
    assert inner
    states = tuple(f"{state}/." for state in State)
    assert [path for path in inner if not path.startswith(("tmp/", *states))] == []


def test_proving_takes_few_calls_and_moves_between_all_states(tree):
    pairs, calls = set(), []

    def note(moment, operation, arguments):
        if moment == "before":
            calls.append(operation)
        if operation == "rename":
            ends = [os.path.relpath(path, tree.root).split("/")[0] for path in arguments]
            pairs.add(tuple(ends))

    with watching(note):
        doctor.prove(tree)
    places = {"tmp", *State}
    assert pairs >= {(one, other) for one in places for other in places if one != other}
    assert len(calls) < 250


def test_another_user_s_examination_works_too():
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    root = tempfile.mkdtemp()
    os.chown(root, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        tree = make_tree(Path(root))
        before = contents(root)
        assert "fail" not in {finding.verdict for finding in examined(tree).values()}
        os.chmod(tree.state(State.FAILED), 0o500)
        moves = examined(tree)["moves"]
        assert (moves.verdict, moves.says.split(":")[0]) == ("fail", "FAILED/ cannot be written")
        assert contents(root) == before
    finally:
        os.seteuid(0)
        shutil.rmtree(root)


# -- bad file systems ----------------------------------------------------------------------------


def test_a_state_on_another_file_system_fails(tree):
    with mounted(tree.state(State.RUNNING), "-t", "tmpfs", "none"):
        before = contents(tree.root)
        found = examined(tree)
        assert found["moves"].verdict == "fail"
        assert "READY/ and RUNNING/" in found["moves"].says
        assert "READY/ and FAILED/" not in found["moves"].says
        assert "two file systems" in found["moves"].says
        assert found["one device"].verdict == "fail"
        with pytest.raises(FileSystemFault, match="READY/ and RUNNING/"):
            doctor.prove(tree)
        assert contents(tree.root) == before


def test_a_bind_mount_between_states_fails_though_it_is_the_same_file_system(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with mounted(tree.state(State.READY), "--bind", str(tmp_path / "elsewhere")):
        found = examined(tree)
        assert found["one device"].verdict == "ok"
        assert found["moves"].verdict == "fail"
        assert "tmp/ and READY/" in found["moves"].says
        assert os.listdir(tree.state(State.READY)) == os.listdir(tree.tmp()) == []


def test_a_read_only_tree_is_looked_at_but_not_probed(tree):
    before = contents(tree.root)
    with mounted(tree.root, "--bind", tree.root):
        made = subprocess.run(["mount", "-o", "remount,ro,bind", tree.root], capture_output=True)
        if made.returncode:
            pytest.skip("cannot remount read-only here")
        found = examined(tree)
        with pytest.raises(FileSystemFault, match="read-only"):
            doctor.prove(tree)
    assert found["writable"].verdict == "fail"
    assert "read-only" in found["writable"].says
    assert "moves" not in found
    assert found["tools"]
    assert contents(tree.root) == before


def test_a_file_system_with_few_inodes_is_told_and_left_as_it_was(tmp_path):
    (tmp_path / "small").mkdir()
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "none"):
        tree = make_tree(tmp_path / "small" / "spool")
        before = contents(tree.root)
        found = examined(tree)
        assert contents(tree.root) == before
        doctor.prove(tree)
    assert found["inodes"].verdict == "warn"
    assert found["file system"].verdict == "note"
    assert "power cut" in found["file system"].says
    assert found["creations"].verdict == "fail"
    assert "No space left" in found["creations"].says
    assert found["moves"].verdict == "ok"


def test_a_file_system_without_types_in_its_listings_is_found_out(tmp_path):
    if not (mkfs := shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")):
        pytest.skip("no mkfs.ext4")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run([mkfs, "-q", "-O", "^filetype", str(image)], check=True)
    (tmp_path / "old").mkdir()
    with mounted(tmp_path / "old", "-o", "loop,noexec", str(image)):
        found = examined(make_tree(tmp_path / "old" / "spool"))
    assert found["listings"].verdict == "warn"
    assert (found["mount options"].verdict, found["mount options"].says[:6]) == ("warn", "noexec")


def test_the_mount_of_a_folder_is_found_under_odd_names_and_overmounts(tmp_path):
    point = tmp_path / "with space"
    point.mkdir()
    with mounted(point, "-t", "tmpfs", "first"), mounted(point, "-t", "tmpfs", "second"):
        (point / "inner").mkdir()
        mount = ground.mount_of(str(point / "inner"))
    assert (mount.point, mount.kind, mount.source) == (str(point), "tmpfs", "second")


def test_a_missing_state_folder_is_told_and_not_made(tree):
    files.remove_folder(tree.state(State.FAILED))
    moves = examined(tree)["moves"]
    assert (moves.verdict, "FAILED/" in moves.says) == ("fail", True)
    assert not os.path.exists(tree.state(State.FAILED))


def test_a_missing_tmp_is_told_and_not_made(tree):
    files.remove_folder(tree.tmp())
    writable = examined(tree)["writable"]
    assert (writable.verdict, "is missing" in writable.says) == ("fail", True)
    assert not os.path.exists(tree.tmp())


def test_folders_that_everybody_may_change_are_told(tree):
    os.chmod(tree.state(State.READY), 0o777)
    finding = examined(tree)["permissions"]
    assert finding.verdict == "warn"
    assert f"chmod o-w {tree.state(State.READY)}" in finding.says
    os.chmod(tree.state(State.READY), 0o1777)
    os.chmod(tree.state(State.CREATED), 0o777)
    assert examined(tree)["permissions"].verdict == "ok"


@pytest.mark.parametrize(
    ("check", "operation", "fault", "part"),
    [
        ("fsync", "fsync", errno.EINVAL, ""),
        ("syncfs", "syncfs", errno.ENOSYS, ""),
        ("hard links", "link", errno.EPERM, ""),
        ("case", "mkdir", errno.EEXIST, "/CASE"),
        ("long names", "create", errno.ENAMETOOLONG, "n" * 200),
        ("creations", "create", errno.EIO, "/creations/"),
        ("claims", "rename", errno.EPERM, "/claims/"),
        ("speed", "rename", errno.EPERM, "/speed/"),
        ("moves", "rename", errno.EACCES, "/WAITING/"),
        ("writable", "mkdir", errno.EDQUOT, ""),
    ],
)
def test_what_a_file_system_refuses_is_a_finding(tree, check, operation, fault, part):
    before = contents(tree.root)
    with watching(refusing(operation, fault, part)):
        finding = examined(tree)[check]
    assert finding.verdict == "fail"
    assert contents(tree.root) == before


@pytest.mark.parametrize(
    ("check", "operation", "fault", "part"),
    [
        ("long names", "create", errno.ENAMETOOLONG, "n" * 255),
        ("odd names", "create", errno.EILSEQ, "odd-"),
        ("empty", "rename", errno.ENOTEMPTY, "/empty/"),
    ],
)
def test_what_spool_can_do_without_is_a_note(tree, check, operation, fault, part):
    with watching(refusing(operation, fault, part)):
        assert examined(tree)[check].verdict == "note"


def test_a_rename_that_replaces_what_is_there_fails(tree):
    def empty_the_target(moment, operation, arguments):
        if (moment, operation) == ("before", "rename") and "/occupied/" in arguments[1]:
            with suppress(FileNotFoundError):
                os.unlink(f"{arguments[1]}/inside")

    with watching(empty_the_target):
        assert examined(tree)["occupied"].verdict == "fail"
        with pytest.raises(FileSystemFault, match="not refused"):
            doctor.prove(tree)


def test_what_cannot_be_removed_is_named(tree):
    with watching(refusing("rmtree", errno.EIO, f"{tree.tmp()}")):
        found = examined(tree)
    assert found["cleanup"].verdict == "warn"
    assert tree.tmp() in found["cleanup"].says


def test_batch_systems_and_mpi_launchers_on_the_path_are_told(tree, tmp_path, monkeypatch):
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    says = examined(tree)["tools"].says
    assert "batch system: sbatch; MPI launchers: srun" in says


# -- what the numbers mean -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("ext4", "ok"),
        ("lustre", "ok"),
        ("tmpfs", "note"),
        ("overlay", "note"),
        ("unheard-of", "note"),
        ("fuse.sshfs", "warn"),
        ("9p", "warn"),
        ("vfat", "fail"),
        ("fuse.s3fs", "fail"),
    ],
)
def test_types_of_file_systems_are_judged(kind, verdict):
    assert ground.of_kind(kind)[0] == verdict


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("rw,hard,vers=4.2,local_lock=none", []),
        ("rw,soft,timeo=600", ["soft"]),
        ("rw,nolock,local_lock=all", ["local_lock=all", "nolock"]),
        ("rw,localflock,lazystatfs", ["localflock"]),
        ("rw,noac", ["noac"]),
    ],
)
def test_mount_options_that_harm_are_named(options, told):
    verdict, says = ground.of_options(frozenset(options.split(",")))
    assert verdict == ("warn" if told else "ok")
    assert [part.partition(":")[0] for part in says.split(". ") if told] == told


def test_both_halves_of_a_mount_s_options_count():
    line = r"61 27 0:52 / /home/a\040b rw,noexec shared:3 - nfs4 srv:/x\134y rw,soft,vers=4.2"
    mount = ground.parse_mount(line + "\n")
    assert (mount.point, mount.kind, mount.source) == ("/home/a b", "nfs4", "srv:/x\\y")
    assert mount.options >= {"noexec", "soft"}


def test_a_mount_that_is_not_listed_is_unknown():
    assert ground.parse_mount("").kind == "unknown"


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("4.18.0-553.el8_10.x86_64", "note"),
        ("5.7.19", "note"),
        ("5.8.0", "ok"),
        ("5.14.0-427.el9", "ok"),
        ("6.18", "ok"),
        ("strange", "note"),
    ],
)
def test_kernels_before_5_8_do_not_report_errors_of_syncfs(release, verdict):
    assert ground.of_kernel(release)[0] == verdict


def statvfs(*, blocks=1000, free=500, inodes=10**7, left=10**6):
    return os.statvfs_result((4096, 4096, blocks, free, free, inodes, left, left, 0, 255))


@pytest.mark.parametrize(
    ("found", "space", "inodes"),
    [
        (statvfs(), "ok", "ok"),
        (statvfs(free=9), "warn", "ok"),
        (statvfs(left=99_999), "ok", "warn"),
        (statvfs(inodes=20_000, left=9_999), "ok", "warn"),
        (statvfs(inodes=20_000, left=10_000), "ok", "ok"),
        (statvfs(inodes=0, left=0), "ok", "note"),
        (statvfs(blocks=0, free=0), "ok", "ok"),
    ],
)
def test_room_is_judged_by_a_hundredth_and_by_ten_thousand_inodes(found, space, inodes):
    assert (ground.of_space(found)[0], ground.of_inodes(found)[0]) == (space, inodes)


@pytest.mark.parametrize(
    ("winners", "verdict"), [([1] * 50, "ok"), ([1] * 49 + [2], "fail"), ([1] * 49 + [0], "fail")]
)
def test_a_race_must_have_one_winner(winners, verdict):
    assert rates.of_race(winners, "created the file")[0] == verdict


def test_a_race_that_several_win_is_seen():
    assert rates._race(lambda racer, number: racer < 2) == [2] * rates.ROUNDS


def test_the_rate_of_moves_bounds_the_rate_of_tasks():
    verdict, says = rates.of_speed(500, 600)
    assert (verdict, "at most about 200 to 300 tasks a second" in says) == ("note", True)
    assert "2 ms" in says
    assert rates.of_speed(40, 90)[0] == "warn"
    assert rates.of_speed(30_000, 20_000)[0] == "ok"


@pytest.mark.parametrize(("ahead", "verdict"), [(0.2, "ok"), (-1.0, "ok"), (3.0, "note")])
def test_a_clock_that_differs_is_a_note(ahead, verdict):
    assert doctor.of_clock(ahead, 0.004)[0] == verdict
    assert "more than 50 ms" in doctor.of_clock(ahead, None)[1]


def test_a_deep_root_leaves_too_little_of_a_path():
    verdicts = [ground.of_paths(Tree("/" + "r" * long), 4096)[0] for long in (20, 3500, 3745)]
    assert verdicts == ["ok", "warn", "fail"]


def test_a_slow_flush_is_a_warning():
    assert doctor.of_syncfs(0.9)[0] == "ok"
    assert doctor.of_syncfs(2.5)[0] == "warn"
