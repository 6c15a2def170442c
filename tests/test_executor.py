"""SpoolExecutor: calls through a spool, and what may go wrong with them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, run_spool

from spool import Spool, SpoolExecutor
from spool.calls import letters
from spool.calls.sizes import PROBES, Sizes
from spool.errors import CallLost, ManifestError, NotASpool
from spool.launcher import warm
from spool.queue import files, processes, tasks
from spool.queue.layout import State, Tree

LONG_S = 60.0


@pytest.fixture(scope="module")
def executor() -> Iterator[SpoolExecutor]:
    """One with a launcher of its own, for all tests that do not harm it."""
    with SpoolExecutor(max_workers=2) as one:
        yield one


@pytest.fixture
def fresh(spool: Spool) -> Iterator[SpoolExecutor]:
    """One on the test's spool, with a launcher of its own."""
    with SpoolExecutor(spool, 2) as one:
        yield one


# -- what travels --------------------------------------------------------------------------------


class Peculiar(Exception):
    """Can be pickled, but not made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("peculiar")


def raise_it(kind: type[Exception], *words: Any) -> None:
    raise kind(*words)  # the line that is looked for


def add(a: int, b: int = 0) -> int:
    return a + b


def test_lambdas_closures_and_partials_travel(executor: SpoolExecutor) -> None:
    factor = 3
    assert executor.submit(lambda x: x * factor, 4).result(LONG_S) == 12
    made = executor.submit(lambda: lambda y: y + factor).result(LONG_S)
    assert made(1) == 4


def test_a_function_and_a_class_of_main_travel(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    program = tmp_path / "main.py"
    program.write_text("""if 1:
        from spool import SpoolExecutor
        import beside
        class Point:
            def __init__(self, x): self.x = x
        SHIFT = 5
        def shifted(point): return Point(point.x + SHIFT)
        if __name__ == "__main__":
            with SpoolExecutor(max_workers=1) as ex:
                got = ex.submit(shifted, Point(1)).result()
                print(type(got) is Point, got.x, ex.submit(beside.triple, 2).result())
    """)
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("True 6 6\n", "")


def test_an_exception_brings_its_traceback(executor: SpoolExecutor) -> None:
    with pytest.raises(ZeroDivisionError, match="oh") as told:
        executor.submit(raise_it, ZeroDivisionError, "oh").result(LONG_S)
    assert isinstance(told.value.__cause__, warm.RemoteTraceback)
    assert "the line that is looked for" in str(told.value.__cause__)
    assert "calls/courier.py" not in str(told.value.__cause__)


def test_an_exception_that_cannot_travel_is_told(executor: SpoolExecutor) -> None:
    with pytest.raises(CallLost, match="Peculiar: peculiar") as told:
        executor.submit(raise_it, Peculiar, 1, 2).result(LONG_S)
    assert "the line that is looked for" in str(told.value.__cause__)


def test_what_cannot_be_pickled_is_told_by_the_future(executor: SpoolExecutor) -> None:
    with pytest.raises(TypeError, match="pickle"):
        executor.submit(print, threading.Lock()).result(LONG_S)
    with pytest.raises(TypeError, match="pickle"):
        executor.submit(threading.Lock).result(LONG_S)
    assert executor.submit(add, 1).result(LONG_S) == 1


def test_exits_and_large_results(executor: SpoolExecutor) -> None:
    with pytest.raises(SystemExit):
        executor.submit(sys.exit, 3).result(LONG_S)
    assert executor.submit(bytes, 5_000_000).result(LONG_S) == bytes(5_000_000)


def test_prints_go_to_the_output_of_the_task(fresh: SpoolExecutor) -> None:
    fresh.submit(print, "said by a call").result(LONG_S)
    eventually(lambda: any("said by a call" in task.output for task in fresh.spool.tasks()))


def test_ten_thousand_calls_take_few_tasks(executor: SpoolExecutor) -> None:
    before = executor._courier.tasks
    began = time.monotonic()
    assert list(executor.map(add, range(10_000), range(10_000))) == list(range(0, 20_000, 2))
    assert executor._courier.tasks - before < 300
    assert time.monotonic() - began < 20


def test_a_long_call_does_not_keep_the_others_of_its_batch(executor: SpoolExecutor) -> None:
    executor.submit(time.sleep, 0).result(LONG_S)  # it is thought to be short now
    futures = [executor.submit(time.sleep, 4 if number == 3 else 0) for number in range(50)]
    began = time.monotonic()
    done, left = wait(futures, 3.5)
    assert len(done) == 49 and left == {futures[3]}
    assert time.monotonic() - began < 4
    assert futures[3].running()
    futures[3].result(LONG_S)


def test_map_in_chunks_and_its_timeout(executor: SpoolExecutor) -> None:
    assert list(executor.map(add, range(25), chunksize=7)) == list(range(25))
    with pytest.raises(TimeoutError):
        list(executor.map(time.sleep, [0, 3], timeout=1))


# -- states and cancelling -----------------------------------------------------------------------


def test_without_a_launcher_calls_wait_and_can_be_cancelled(spool: Spool) -> None:
    executor = SpoolExecutor(spool)
    futures = [executor.submit(add, number) for number in range(100)]
    eventually(lambda: list(spool.tasks()))
    assert not any(future.running() or future.done() for future in futures)
    assert len(list(spool.tasks())) <= PROBES
    assert all(future.cancel() for future in futures[1:])
    assert wait(futures[1:], LONG_S).done == set(futures[1:])
    before = Counter(task.state for task in spool.tasks())
    run_spool(spool.root, "launcher", "--quiet", "--idle-timeout", "0", check=True)
    assert futures[0].result(LONG_S) == 0
    with pytest.raises(CancelledError):
        futures[1].result(0)
    executor.shutdown()
    states = Counter(task.state for task in spool.tasks())
    assert before[State.READY] == 1 and set(before) <= {State.READY, State.CANCELLED}
    assert states[State.FINISHED] == 1 and set(states) <= {State.FINISHED, State.CANCELLED}


def test_a_running_call_cannot_be_cancelled(executor: SpoolExecutor) -> None:
    future = executor.submit(time.sleep, 0.5)
    eventually(future.running)
    assert not future.cancel()
    assert future.result(LONG_S) is None


def test_a_task_that_a_person_cancels_fails_its_call(spool: Spool) -> None:
    with SpoolExecutor(spool) as executor:
        future = executor.submit(add, 1)
        eventually(lambda: list(spool.tasks()))
        (task,) = spool.tasks()
        spool.cancel(task)
        with pytest.raises(CallLost, match="CANCELLED"):
            future.result(LONG_S)


def test_a_call_out_of_time_is_told(spool: Spool) -> None:
    with SpoolExecutor(spool, 1, time_limit="0.5s", grace="0.1s") as executor:
        future = executor.submit(time.sleep, 30)
        with pytest.raises(CallLost, match="FAILED/timeout"):
            future.result(LONG_S)


def test_what_an_executor_cannot_be(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(NotASpool):
        SpoolExecutor(tmp_path, 2)
    with pytest.raises(ManifestError, match="unknown key 'nonsense'"):
        SpoolExecutor(spool, nonsense=1)
    with pytest.raises(ValueError, match="key is of one task"):
        SpoolExecutor(spool, key="x")
    with pytest.raises(ValueError, match="max_batch"):
        SpoolExecutor(spool, max_batch=0)


def test_an_executor_tidies_up(spool: Spool) -> None:
    executor = SpoolExecutor(spool, 1)
    thread = executor._courier.thread
    assert executor.submit(add, 1).result(LONG_S) == 1
    launcher = executor._courier.local
    del executor  # nobody shut it down
    eventually(lambda: not thread.is_alive())
    assert launcher is not None and launcher.process is not None
    assert launcher.process.poll() is not None
    assert files.names(f"{spool.root}/tmp") == []


# -- deaths --------------------------------------------------------------------------------------


def kill_first(path: str) -> str:
    """The first time it kills its own process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


def test_a_call_whose_process_is_killed_is_lost(executor: SpoolExecutor) -> None:
    with pytest.raises(CallLost, match="FAILED/signal-9"):
        executor.submit(os.kill, 0, 9).result(LONG_S)  # its whole group, that is itself
    with pytest.raises(CallLost, match="without a result"):
        executor.submit(os._exit, 0).result(LONG_S)
    assert executor.submit(add, 2).result(LONG_S) == 2


def test_a_killed_call_is_tried_again_if_its_task_may(spool: Spool, tmp_path: Path) -> None:
    with SpoolExecutor(spool, 1, max_attempts=2) as executor:
        assert executor.submit(kill_first, str(tmp_path / "x")).result(LONG_S) == "survived"


def test_the_others_of_a_killed_batch_are_done(executor: SpoolExecutor) -> None:
    list(executor.map(abs, range(300)))  # known as short
    futures: list[Future[Any]] = [executor.submit(abs, number) for number in range(300)]
    murder = executor.submit(os.kill, 0, 9)
    futures += [executor.submit(abs, number) for number in range(300)]
    assert sum(future.result(LONG_S) for future in futures) == 2 * sum(range(300))
    with pytest.raises(CallLost):
        murder.result(LONG_S)


def tell(path: str, seconds: float, number: int) -> int:
    """Sleep, and leave a line."""
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def test_a_killed_launcher_loses_no_call(fresh: SpoolExecutor, tmp_path: Path) -> None:
    """It is started anew and takes over; what had a result does not run again."""
    path = str(tmp_path / "told")
    futures = [fresh.submit(tell, path, 0.05, number) for number in range(60)]
    eventually(lambda: os.path.exists(path) and os.path.getsize(path) > 20)
    local = fresh._courier.local
    assert local is not None and local.process is not None
    local.process.kill()
    assert [future.result(LONG_S) for future in futures] == list(range(60))
    runs = Counter((tmp_path / "told").read_text().split())
    assert set(runs) == set(map(str, range(60)))
    assert sum(runs.values()) <= 60 + 8  # only what was under way


def test_a_launcher_that_cannot_start_fails_the_calls(fresh: SpoolExecutor) -> None:
    local = fresh._courier.local
    assert local is not None
    local.words = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(CallLost, match="no such luck"):
        fresh.submit(add, 1).result(LONG_S)


# -- warm processes ------------------------------------------------------------------------------


def about_me() -> dict[str, Any]:
    """What a call sees of its process."""
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "mark": processes.environment(os.getpid()).get(b"SPOOL_TASK", b"").decode(),
        "owner": processes.environment(os.getpid()).get(b"SPOOL_LAUNCHER", b"").decode(),
        "told": os.environ["SPOOL_TASK"],
        "cwd": os.getcwd(),
        "cores": sorted(os.sched_getaffinity(0)),
        "cpus": os.environ["SPOOL_CPUS"],
        "words": Path("/proc/self/cmdline").read_bytes().decode(),
    }


def warm_one(executor: SpoolExecutor) -> dict[str, Any]:
    """What a call sees once they are forked."""
    for _ in range(100):
        found: dict[str, Any] = executor.submit(about_me).result(LONG_S)
        if "--zygote" in found["words"]:
            return found
    raise AssertionError("no call was ever forked")


def test_a_fork_is_a_task_s_process_in_all_that_can_be_seen(executor: SpoolExecutor) -> None:
    me = warm_one(executor)
    local = executor._courier.local
    assert local is not None and local.process is not None
    assert me["parent"] == local.process.pid
    assert me["session"] == me["pid"]
    assert me["mark"] == me["told"] and me["told"] in me["cwd"]
    assert me["owner"].startswith("launcher.")
    assert me["cores"] == list(map(int, me["cpus"].split(",")))


def test_a_dead_zygote_is_replaced(executor: SpoolExecutor) -> None:
    warm_one(executor)
    local = executor._courier.local
    assert local is not None and local.process is not None
    zygote = forked(local.process.pid)[0]
    os.kill(zygote, signal.SIGKILL)
    assert executor.submit(add, 1, 1).result(LONG_S) == 2
    warm_one(executor)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def words_of(pid: int) -> str:
    """How a process was started; nothing if it has ended since it was listed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def forked(pid: int) -> list[int]:
    """A launcher's zygote and what was forked from it."""
    return [child for child in children(pid) if "--zygote" in words_of(child)]


def leave_a_child() -> int:
    """A process in a session of its own, as a daemon would be."""
    return subprocess.Popen(["sleep", "300"], start_new_session=True).pid


def test_what_a_forked_call_leaves_is_killed(executor: SpoolExecutor) -> None:
    warm_one(executor)
    pid = executor.submit(leave_a_child).result(LONG_S)
    eventually(lambda: processes.process_start(pid) is None)


def test_the_guard_ends_forked_calls_of_a_killed_launcher(
    fresh: SpoolExecutor, tmp_path: Path
) -> None:
    warm_one(fresh)
    future = fresh.submit(stay_once, str(tmp_path / "once"))
    eventually(lambda: (tmp_path / "once").exists())
    local = fresh._courier.local
    assert local is not None and local.process is not None
    running: set[int] = set()

    def both_seen() -> bool:
        """The zygote and the fork; while another child ends, the kernel may leave out some."""
        running.update(forked(local.process.pid))
        return len(running) == 2

    eventually(both_seen)
    local.process.kill()
    eventually(lambda: all(processes.process_start(pid) is None for pid in running))
    assert future.result(LONG_S) == "again"  # under the launcher that came after


def stay_once(path: str) -> str:
    """The first time it never ends."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "again"
    time.sleep(1000)
    return "unreachable"


def random_numbers() -> tuple[float, int]:
    import random

    return random.random(), os.getpid()


def test_forks_draw_different_numbers(executor: SpoolExecutor) -> None:
    warm_one(executor)
    drawn = [executor.submit(random_numbers).result(LONG_S) for _ in range(4)]
    assert len({number for number, _ in drawn}) == len({pid for _, pid in drawn}) == 4


# -- pickles of others ---------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play two users")


class Trap:
    """Leaves a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.path, "w")


def hidden_trap(tree: Tree, sprung: Path, spoil: Callable[[str], object]) -> tasks.Spot:
    """A task whose calls are a trap, spoiled in some way; where it ended once a launcher ran."""
    from spool.queue import manifest, submit

    call = letters.Call(
        0, Future(), "", pickle.dumps(abs), pickle.dumps(((Trap(str(sprung)),), {}))
    )

    def fill(built: str) -> None:
        Path(built, warm.CALLS).write_bytes(letters.written([call], "", alone=True))
        spoil(built)

    wanted = manifest.from_mapping({"python": sys.executable}, "test")
    task_id = submit.submit(tree, wanted, fill)
    run_spool(tree.root, "launcher", "--quiet", "--idle-timeout", "0", check=True)
    spot = tasks.find(tree, task_id)
    assert spot is not None
    return spot


def linked(built: str) -> None:
    os.rename(f"{built}/calls", f"{built}/elsewhere")
    os.symlink("elsewhere", f"{built}/calls")


SPOILED: dict[str, Callable[[str], object]] = {
    "foreign": lambda built: os.chown(f"{built}/calls", 12345, -1),
    "open": lambda built: os.chmod(f"{built}/calls", 0o666),
    "linked": linked,
    "second name": lambda built: os.link(f"{built}/calls", f"{built}/second"),
}


@as_root
@pytest.mark.parametrize("how", SPOILED)
def test_a_worker_loads_no_calls_but_its_own_user_s(tree: Tree, tmp_path: Path, how: str) -> None:
    sprung = tmp_path / "sprung"
    assert hidden_trap(tree, sprung, SPOILED[how]).group.startswith("exit-78@")
    assert not sprung.exists()


def test_the_trap_works(tree: Tree, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    hidden_trap(tree, sprung, lambda _: None)
    assert sprung.exists()


@as_root
def test_an_executor_loads_no_results_but_its_own_user_s(spool: Spool, tmp_path: Path) -> None:
    """A child that has become another user writes into the mailbox, which root had opened to it."""
    sprung = tmp_path / "sprung"
    executor = SpoolExecutor(spool)
    future = executor.submit(add, 1)
    eventually(lambda: list(spool.tasks()))
    (task,) = spool.tasks()
    mailbox = executor._courier.mailbox
    aside = tmp_path / "aside"
    aside.write_bytes(
        warm.frame(warm.VALUE, letters_number(future), 0, pickle.dumps(Trap(str(sprung))))
    )
    os.chown(aside, 12345, -1)
    os.rename(aside, f"{mailbox}/{task.id}.1")
    with pytest.raises(TimeoutError):
        future.result(2)
    assert not sprung.exists()
    os.rename(f"{mailbox}/{task.id}.1", aside)
    run_spool(spool.root, "launcher", "--quiet", "--idle-timeout", "0", check=True)
    assert future.result(LONG_S) == 1
    executor.shutdown()


def letters_number(future: Future[Any]) -> int:
    number: int = future._number  # type: ignore[attr-defined]
    return number


@as_root
def test_another_user_cannot_write_into_the_mailbox(spool: Spool) -> None:
    with SpoolExecutor(spool) as executor:
        path = f"{executor._courier.mailbox}/x.1"
        program = f"import os; os.setuid(12345); open({path!r}, 'w')"
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "PermissionError" in ran.stderr


# -- how large a batch is ------------------------------------------------------------------------


def test_unknown_calls_go_alone_and_few_at_once() -> None:
    sizes = Sizes(500)
    assert sizes.batch(["f"] * 500, 10_000, 2, probes=0) == 1
    assert sizes.batch(["f"] * 500, 10_000, 2, probes=PROBES) == 0


def test_short_calls_go_by_the_hundred_and_long_ones_alone() -> None:
    sizes = Sizes(500)
    sizes.learn("short", 1e-6)
    sizes.learn("long", 2.0)
    assert sizes.batch(["short"] * 500, 10_000, 2, 0) == 500
    assert sizes.batch(["long"] * 500, 10_000, 2, 0) == 1
    assert sizes.batch(["short", "short", "long", "short"], 4, 2, 0) == 2
    assert sizes.batch(["short", "unknown"], 2, 2, 0) == 1


def test_the_last_calls_are_shared_out() -> None:
    sizes = Sizes(500)
    sizes.learn("f", 0.01)
    assert sizes.batch(["f"] * 16, 16, 4, 0) == 1 + 1
    assert sizes.batch(["f"] * 500, 5000, 4, 0) == 24


def test_a_torn_frame_is_passed_over() -> None:
    whole = warm.frame(warm.VALUE, 7, 5, b"abc") + warm.frame(warm.ERROR, 8, 2**40, b"de")
    assert [one.number for one, _ in warm.frames(whole)] == [7, 8]
    for cut in range(len(whole)):
        assert len(list(warm.frames(whole[:cut]))) <= 1
