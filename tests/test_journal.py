"""The journal: one append-only log per owner, whose loss costs a graph and never a task."""

from __future__ import annotations

import errno

from spool.queue import files
from spool.queue.journal import Journal, read


def test_what_was_noted_is_read_back_owner_by_owner(tree):
    for owner in ("launcher.b", "launcher.a"):
        one = Journal(tree, owner)
        one.note({"what": "opened", "owner": owner})
        one.note({"what": "closed", "owner": owner})
        one.write()
    told = [(event["owner"], event["what"]) for event in read(tree)]
    assert told == [
        ("launcher.a", "opened"),
        ("launcher.a", "closed"),
        ("launcher.b", "opened"),
        ("launcher.b", "closed"),
    ]


def test_nothing_is_written_before_write_and_nothing_twice(tree):
    journal = Journal(tree, "launcher.a")
    journal.note({"what": "opened"})
    assert list(read(tree)) == []
    journal.write()
    journal.write()
    assert len(list(read(tree))) == 1


def test_a_batch_is_one_write(tree):
    journal = Journal(tree, "launcher.a")
    for number in range(100):
        journal.note({"what": "exit", "number": number})
    calls = []
    files.watch(lambda when, operation, _: calls.append(operation) if when == "before" else None)
    journal.write()
    files.watch(None)
    assert calls == ["create", "write"]


def test_a_full_disk_drops_events_and_raises_nothing(tree):
    journal = Journal(tree, "launcher.a")
    journal.note({"what": "opened"})

    def full(when, operation, arguments):
        if operation == "write":
            raise OSError(errno.ENOSPC, "no space")

    files.watch(full)
    journal.write()
    files.watch(None)
    journal.note({"what": "closed"})
    journal.write()
    assert [event["what"] for event in read(tree)] == ["closed"]


def test_a_line_torn_by_a_full_disk_costs_only_itself(tree):
    journal = Journal(tree, "launcher.a")
    files.append(journal.path, b'{"what":"ex')
    journal.note({"what": "closed"})
    journal.write()
    assert [event["what"] for event in read(tree)] == ["closed"]


def test_damage_in_a_journal_is_passed_over(tree):
    path = tree.journal("launcher.a")
    files.append(
        path, b'{"what":"a"}\n\xff\xfe\n[1,2]\n"word"\n\n' + b"[" * 5000 + b'\n{"what":"b"}\n'
    )
    assert [event["what"] for event in read(tree)] == ["a", "b"]


def test_a_spool_without_journals_has_no_events(tree):
    files.remove_tree(tree.folder("journal"))
    assert list(read(tree)) == []


def test_what_is_no_file_in_the_journal_s_folder_is_passed_over(tree):
    files.make_folder(tree.journal("launcher.a"))
    files.append(tree.journal("launcher.b"), b'{"what":"b"}\n')
    assert [event["what"] for event in read(tree)] == ["b"]
