"""The one post of service: who has it, who may take it; what one-shots remember of the silent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import crashing
import pytest
from conftest import eventually, make_tree, where
from crashing import Child, far_owner, findings, in_child, killed_at_each_call, one, start_owner
from test_takeover import Clock, dead_owner

from spool.queue import files, owner, silence
from spool.queue.layout import State, Tree
from spool.queue.owner import Owner
from spool.queue.takeover import Observer, Verdict
from spool.service import post

DEAD_S = 240.0


@pytest.fixture(autouse=True)
def _no_child_stays() -> Iterator[None]:
    yield
    crashing.kill_children()


def judge_of(me: Owner) -> post.Judge:
    return Observer(me, one_shot=True).verdict


def service_of(tree: Tree) -> Owner:
    return start_owner(tree, "service")


def marks(tree: Tree) -> list[str]:
    return post.marks(tree)


def name_post(tree: Tree, holder: str) -> None:
    files.make_folder(tree.owner(f"{post.MARK}{holder}"))


# -- who has it ----------------------------------------------------------------------------------


def test_the_first_to_come_has_the_post_and_leaves_it_free(tree: Tree) -> None:
    first, second = service_of(tree), service_of(tree)
    assert post.take(first, judge_of(first)) == ""
    assert post.is_ours(first) and not post.is_ours(second)
    assert post.take(second, judge_of(second)) == first.name
    post.release(first)
    assert marks(tree) == [post.NOBODY] and not post.is_ours(first)
    assert post.take(second, judge_of(second)) == ""
    first.end()
    second.end()


def test_a_holder_of_this_host_whose_process_is_gone_is_succeeded_at_once(tree: Tree) -> None:
    name_post(tree, dead_owner(tree, kind="service"))
    me = service_of(tree)
    assert post.take(me, judge_of(me)) == ""
    assert marks(tree) == [f"{post.MARK}{me.name}"]


def test_a_holder_without_a_lease_is_none_wherever_it_was(tree: Tree) -> None:
    far = far_owner(tree, "service")
    name_post(tree, far.name)
    me = service_of(tree)
    assert post.take(me, judge_of(me)) == far.name
    files.remove_folder(far.claims)
    assert post.take(me, judge_of(me)) == ""


def test_several_dead_marks_leave_one_living_holder(tree: Tree) -> None:
    for _ in range(3):
        name_post(tree, dead_owner(tree, kind="service"))
    files.make_folder(f"{tree.owner(marks(tree)[0])}/something")
    name_post(tree, "nobody")
    me = service_of(tree)
    assert post.take(me, judge_of(me)) == ""
    assert post.is_ours(me)


def test_a_stray_mark_of_nobody_does_not_stop_the_holder(tree: Tree) -> None:
    me = service_of(tree)
    assert post.take(me, judge_of(me)) == ""
    name_post(tree, "nobody")
    assert post.is_ours(me)
    post.release(me)
    assert marks(tree) == [post.NOBODY]


def test_whoever_has_lost_its_lease_may_not_ask(tree: Tree) -> None:
    me = service_of(tree)
    post.take(me, judge_of(me))
    files.remove_folder(me.claims)
    assert not post.is_ours(me)


def test_of_two_that_took_it_at_once_one_stays(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "PAUSE_S", 0.01)
    first, second = sorted((service_of(tree), service_of(tree)), key=lambda each: each.name)
    name_post(tree, first.name)
    name_post(tree, second.name)
    assert not post.is_ours(first) and not post.is_ours(second)
    assert post.take(second, judge_of(second)) == first.name
    assert post.take(first, judge_of(first)) == ""


def test_who_had_it_before_stays_whatever_the_names(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "PAUSE_S", 0.01)
    first, second = sorted((service_of(tree), service_of(tree)), key=lambda each: each.name)
    name_post(tree, second.name)
    name_post(tree, first.name)  # late, by a listing from before
    assert post.take(first, judge_of(first)) == second.name
    assert post.is_ours(second)


def test_of_many_started_at_once_never_two_ask_and_one_always_may(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "PAUSE_S", 0.02)
    gun, asking = f"{tree.root}/gun", f"{tree.root}/asking"

    def service(tell: crashing.Tell) -> None:
        me = service_of(tree)
        eventually(lambda: os.path.exists(gun))
        if post.take(me, judge_of(me)) == "":
            tell("took it")
            for _ in range(20):
                if post.is_ours(me):
                    os.close(os.open(asking, os.O_CREAT | os.O_EXCL))
                    time.sleep(0.002)
                    os.unlink(asking)
                time.sleep(0.002)
            tell(post.is_ours(me))
            post.release(me)
        me.end()

    for number in range(8):
        if number % 3 == 2:
            for mark in marks(tree):
                files.remove_tree(tree.owner(mark))
        if number % 3 == 1:
            name_post(tree, dead_owner(tree, kind="service"))
        children = [Child(service) for _ in range(4)]
        open(gun, "w").close()
        told = [word for child in children for word in child.wait().told]
        assert "took it" in told and True in told, f"round {number}"
        os.unlink(gun)
        assert marks(tree) == [post.NOBODY]


def test_a_kill_at_any_call_of_taking_and_leaving_keeps_no_successor_out(tmp_path: Any) -> None:
    trees: list[Tree] = []

    def prepare() -> crashing.Scenario:
        tree = make_tree(tmp_path / str(len(trees)))
        trees.append(tree)
        if len(trees) % 2:
            name_post(tree, dead_owner(tree, kind="service"))

        def service(tell: crashing.Tell) -> None:
            me = service_of(tree)
            assert post.take(me, judge_of(me)) == ""
            post.release(me)
            me.end()

        return service

    for spot, _ in killed_at_each_call(prepare, stride=2):
        tree = trees[-1]
        me = service_of(tree)
        assert post.take(me, judge_of(me)) == "", spot
        assert post.is_ours(me), spot
        post.release(me)
        me.end()
        findings(tree, repair=True)
        assert findings(tree) == [], spot
        assert files.names(tree.state(State.RUNNING)) == [], spot


# -- check ---------------------------------------------------------------------------------------


def test_check_clears_the_marks_and_folders_of_dead_services(tree: Tree) -> None:
    for _ in range(2):
        name_post(tree, dead_owner(tree, kind="service"))
    name_post(tree, "service.far.0123abcd.7.aaaa")
    found = findings(tree)
    assert sum("next service would take it" in each.what for each in found) == 3
    assert sum("its owner is dead" in each.what for each in found) == 2
    assert all(each.repaired for each in findings(tree, repair=True))
    assert findings(tree) == [] and files.names(tree.folder("launchers")) == []


def test_check_tells_of_two_living_services_and_touches_neither(tree: Tree) -> None:
    both = sorted((service_of(tree), service_of(tree)), key=lambda each: each.name)
    for each in both:
        name_post(tree, each.name)
    (found,) = findings(tree, repair=True)
    assert "neither asks for anything" in found.what and not found.repaired
    assert len(marks(tree)) == 2


# -- the silent, as one-shots see them -----------------------------------------------------------


class Looks:
    """One-shots, a new observer each, on a clock set by hand."""

    def __init__(self, tree: Tree, me: Owner, name: str) -> None:
        self.tree, self.me, self.name, self.clock = tree, me, name, Clock()

    def __call__(self, after_s: float) -> Verdict:
        self.clock.now += after_s
        return Observer(self.me, self.clock, one_shot=True).verdict(self.name)


@pytest.fixture
def far(tree: Tree) -> Owner:
    return far_owner(tree, "service")


@pytest.fixture
def look(tree: Tree, owner: Owner, far: Owner) -> Looks:
    return Looks(tree, owner, far.name)


def seen_path(tree: Tree, far: Owner) -> str:
    return tree.owner(far.name, f"seen.{owner.here().host}")


def test_a_cron_job_every_five_minutes_concludes_at_its_third_look(look: Looks) -> None:
    assert [look(300) for _ in range(3)] == [
        Verdict.UNDECIDED,
        Verdict.UNDECIDED,
        Verdict.DEAD,
    ]


def test_a_frequent_cron_job_waits_for_the_silence_to_last(look: Looks) -> None:
    verdicts = [look(60) for _ in range(6)]
    assert verdicts == [Verdict.UNDECIDED] * 4 + [Verdict.DEAD] * 2


def test_many_looks_within_a_beat_are_one(look: Looks) -> None:
    look(1)
    look(DEAD_S + 1)
    for _ in range(5):
        assert look(1) is Verdict.UNDECIDED
    assert look(30) is Verdict.DEAD


def test_a_beat_between_two_looks_begins_the_count_anew(look: Looks, far: Owner) -> None:
    look(300)
    look(300)
    far.beat()
    assert look(300) is Verdict.ALIVE
    assert [look(300) for _ in range(2)] == [Verdict.UNDECIDED, Verdict.DEAD]


def test_another_boot_begins_the_count_anew(
    tree: Tree, look: Looks, far: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(300)
    look(300)
    monkeypatch.setattr(owner, "boot_id", lambda: "another")
    look.clock.now = 10.0  # monotonic clocks begin at the boot
    assert [look(300) for _ in range(3)] == [
        Verdict.UNDECIDED,
        Verdict.UNDECIDED,
        Verdict.DEAD,
    ]


def test_a_clock_that_is_before_what_was_seen_begins_anew(look: Looks) -> None:
    look(300)
    look(300)
    assert look(-500) is Verdict.UNDECIDED
    assert look(300) is Verdict.UNDECIDED


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[" * 4000, b'{"token":3}', b"null"])
def test_what_was_seen_and_is_damaged_begins_anew(
    tree: Tree, look: Looks, far: Owner, damage: bytes
) -> None:
    look(300)
    look(300)
    files.replace(seen_path(tree, far), damage)
    assert [look(300) for _ in range(3)] == [
        Verdict.UNDECIDED,
        Verdict.UNDECIDED,
        Verdict.DEAD,
    ]


def test_who_goes_on_looking_leaves_nothing_behind(tree: Tree, owner: Owner, far: Owner) -> None:
    clock = Clock()
    observer = Observer(owner, clock)
    for _ in range(3):
        observer.verdict(far.name)
        clock.now += 5
    assert not files.exists(seen_path(tree, far))


def test_what_was_seen_is_read_as_it_was_written(tree: Tree, far: Owner) -> None:
    kept = silence.Silence(b"\x00token\xff", 5.0, 7.0, alive=True, looks=2, boot=owner.boot_id())
    silence.keep(tree, far.name, kept)
    assert silence.recall(tree, far.name, 8.0) == kept
    silence.keep(tree, "launcher.nobody.0123abcd.1.aaaa", kept)  # its folder is gone
    assert silence.recall(tree, "launcher.nobody.0123abcd.1.aaaa", 8.0) is None


def test_an_owner_s_death_is_concluded_by_real_one_shots(tmp_path: Any) -> None:
    lease = '[lease]\nbeat = "0.1s"\nfence = "0.4s"\ndead = "1s"\n'
    tree = make_tree(tmp_path / "spool", lease)
    far = far_owner(tree, "launcher")
    task = one(tree)
    crashing.claimed(far, task)

    def one_shot(tell: crashing.Tell) -> None:
        from spool.config import trusted_users
        from spool.queue.lookout import Lookout

        me = service_of(tree)
        words: list[str] = []
        lookout = Lookout(me, trusted_users(), words.append, everyone=True, one_shot=True)
        lookout.look()
        me.end()
        tell(words)

    begun = time.monotonic()
    assert in_child(one_shot) == [[]]
    assert in_child(one_shot) == [[]]
    eventually(lambda: in_child(one_shot) != [[]], "the third or a later one concludes")
    assert time.monotonic() - begun >= 1.0
    assert files.names(tree.group(State.RUNNING, far.name)) == []
    assert where(tree, task).startswith("READY/")
