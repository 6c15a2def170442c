"""The calls on the tree: each says what happened, and nothing follows a link out of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import crashing
import pytest

from spool.errors import DiskFull, FileSystemFault, SpoolError
from spool.queue import faults, files, trust


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A task directory, and where it is to go."""
    (tmp_path / "from" / "task").mkdir(parents=True)
    (tmp_path / "from" / "task" / "manifest.json").touch()
    return str(tmp_path / "from" / "task"), str(tmp_path / "to" / "task")


def test_a_move_makes_the_missing_target_folder(two: tuple[str, str]) -> None:
    assert files.move(*two) is True
    assert os.listdir(two[1]) == ["manifest.json"]


def test_a_lost_race_is_an_answer(two: tuple[str, str]) -> None:
    os.rename(two[0], two[0] + "-elsewhere")
    assert files.move(*two) is False


def test_a_move_never_replaces_what_is_there(two: tuple[str, str]) -> None:
    os.makedirs(f"{two[1]}/kept")
    with pytest.raises(FileExistsError):
        files.move(*two)
    assert os.listdir(two[1]) == ["kept"] and os.path.isdir(two[0])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EXDEV])
def test_a_move_the_file_system_refuses_is_explained(two: tuple[str, str], error: int) -> None:
    kind = DiskFull if error in faults.FULL else FileSystemFault
    with crashing.failing("rename", error), pytest.raises(kind, match=two[1]):
        files.move(*two)
    assert os.path.isdir(two[0])


def test_a_target_folder_removed_again_and_again_is_made_again(two: tuple[str, str]) -> None:
    removed = []

    def remove(when: str, operation: str, arguments: tuple[object, ...]) -> None:
        if when == "before" and operation == "rename" and len(removed) < 1:
            removed.append(files.remove_folder(os.path.dirname(two[1])))

    os.mkdir(os.path.dirname(two[1]))
    files.watch(remove)
    assert files.move(*two) is True and removed == [True]


def test_a_new_file_is_never_written_over_another(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    files.write_new(path, b"first")
    with pytest.raises(FileExistsError):
        files.write_new(path, b"second")
    assert files.read(path) == b"first"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_half_a_new_file_is_removed(tmp_path: Path, error: int) -> None:
    path = tmp_path / "file"
    with crashing.failing("fsync", error), pytest.raises((SpoolError, OSError)):
        files.write_new(str(path), b"content", sync=True)
    assert not path.exists()


def test_a_replacement_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(str(path), b"old")
    with crashing.failing("rename", errno.ENOSPC), pytest.raises(DiskFull):
        files.replace(str(path), b"new")
    assert os.listdir(tmp_path) == ["file"] and path.read_bytes() == b"old"


def test_nothing_is_created_or_appended_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"kept\n")
    link = str(tmp_path / "link")
    os.symlink(outside, link)
    for write in (files.write_new, files.append, files.overwrite):
        with pytest.raises(OSError):
            write(link, b"lost\n")
    assert outside.read_bytes() == b"kept\n"


def test_an_append_first_ends_a_torn_line(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    files.append(path, b"whole\n")
    files.append(path, b"torn")
    files.append(path, b"next\n")
    assert files.read(path) == b"whole\ntorn\nnext\n"


def test_an_append_to_a_missing_file_without_create_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.append(str(tmp_path / "log"), b"x\n", create=False)
    assert os.listdir(tmp_path) == []


def test_a_file_moved_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "output").write_text(str(number))
        assert files.move_aside(str(tmp_path / "output")) == str(tmp_path / f"output.{number + 1}")
    assert (tmp_path / "output.3").read_text() == "2"


def test_a_tree_is_removed_with_locked_folders_and_without_following_links(
    tmp_path: Path,
) -> None:
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    (tmp_path / "tree" / "locked" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "link").symlink_to(outside)
    (tmp_path / "tree" / "locked").chmod(0o500)
    files.remove_tree(str(tmp_path / "tree"))
    files.remove_tree(str(tmp_path / "tree"))  # gone already: no error
    assert os.listdir(tmp_path) == ["outside"] and os.listdir(outside) == ["kept"]


def test_a_tree_into_which_something_is_put_meanwhile_is_removed_all_the_same(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    with crashing.failing("rmtree", errno.ENOTEMPTY):
        files.remove_tree(str(folder))
    assert not folder.exists()


def test_what_is_not_there_lists_as_nothing(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert files.names(missing) == [] and list(files.scan(missing)) == []
    assert files.read(missing) is None and not files.sync(missing)
    assert not files.unlink(missing) and not files.remove_folder(missing)
    assert not files.exists(missing) and not files.holds(missing)


def test_a_long_file_is_read_whole_and_no_further_than_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 3_000_000)
    assert len(files.read(str(path)) or b"") == 3_000_000
    assert len(files.read(str(path), 70_000) or b"") <= 70_000


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        (lambda path: os.mkfifo(path), "no plain file"),
        (lambda path: os.symlink("/etc/passwd", path), "link"),
        (lambda path: os.mkdir(path), "no plain file"),
        (lambda path: (Path(path).touch(), os.link(path, path + "2")), "second hard link"),
        (lambda path: (Path(path).touch(), os.chmod(path, 0o666)), "written by everyone"),
        (lambda path: Path(path).write_bytes(b"x" * (files.LARGEST_MANIFEST + 1)), "larger than"),
    ],
    ids=["fifo", "link", "folder", "twin", "open", "huge"],
)
def test_a_file_that_cannot_be_trusted_is_refused_with_its_reason(
    tmp_path: Path, trap: object, said: str
) -> None:
    trap(str(tmp_path / "manifest.json"))  # type: ignore[operator]
    with pytest.raises(PermissionError, match=said):
        trust.read_trusted(str(tmp_path), "manifest.json", frozenset((os.geteuid(),)))


def test_a_folder_reached_by_a_link_or_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "manifest.json").write_text("{}")
    (tmp_path / "link").symlink_to("task")
    me = frozenset((os.geteuid(),))
    with pytest.raises(PermissionError, match="link"):
        trust.read_trusted(str(tmp_path / "link"), "manifest.json", me)
    with pytest.raises(PermissionError, match="not trusted"):
        trust.read_trusted(str(tmp_path / "task"), "manifest.json", frozenset((4242,)))
    assert trust.read_trusted(str(tmp_path / "task"), "manifest.json", me) == b"{}"


def test_a_failed_sync_is_told_and_not_tried_again(tmp_path: Path) -> None:
    calls = []

    def fail(when: str, operation: str, arguments: tuple[object, ...]) -> None:
        if when == "before" and operation == "fsync":
            calls.append(operation)
            raise OSError(errno.EIO, "Input/output error")

    files.watch(fail)
    with pytest.raises(OSError):
        files.sync(str(tmp_path))
    assert calls == ["fsync"]


def test_a_sync_below_reaches_every_file_and_stops_at_no_link_or_fifo(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "numbers").touch()
    (tmp_path / "link").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "fifo")
    synced: list[str] = []

    def note(when: str, operation: str, arguments: tuple[object, ...]) -> None:
        if when == "before" and operation == "fsync":
            synced.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))

    files.watch(note)
    files.sync_below(str(tmp_path))
    assert synced == [str(tmp_path / "deep" / "numbers"), str(tmp_path / "deep"), str(tmp_path)]


def test_every_call_passes_the_watcher_before_and_after(two: tuple[str, str]) -> None:
    seen: list[tuple[str, str]] = []
    files.watch(lambda when, operation, arguments: seen.append((when, operation)))
    files.make_folder(os.path.dirname(two[1]))
    files.move(*two)
    assert seen == [
        ("before", "mkdir"),
        ("after", "mkdir"),
        ("before", "rename"),
        ("after", "rename"),
    ]


def test_what_the_system_says_is_said_plainly_at_a_person_s_door() -> None:
    with pytest.raises(FileSystemFault, match="/x: Permission denied"), faults.said_plainly():
        raise PermissionError(errno.EACCES, "Permission denied", "/x")
    with pytest.raises(DiskFull, match="/x: "), faults.said_plainly():
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/x")
