"""@spool.function, results of tasks, and waiting for tasks and futures alike."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future
from pathlib import Path

import pytest
from conftest import run_spool

import spool as package
from spool import Spool
from spool.errors import CallLost, ManifestError, NoSuchTask, TaskFailed
from spool.launcher import warm
from spool.queue import wait as waiting
from spool.queue.layout import State


@package.function(cores=1, time_limit="1m", max_attempts=1)
def half(number: int) -> int:
    """Half of an even number."""
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@package.function
def plain(word: str = "x") -> str:
    """A function without keys."""
    print("said", word)
    return word * 2


def run_all(spool: Spool) -> None:
    run_spool(spool.root, "launcher", "--idle-timeout", "0", "--quiet", check=True)


def test_a_decorated_function_is_still_that_function() -> None:
    assert half(4) == 2
    assert half.__doc__ == "Half of an even number." and half.__name__ == "half"
    assert pickle.loads(pickle.dumps(half)) is half
    with pytest.raises(ManifestError, match="unknown key 'core'"):
        package.function(core=1)
    assert half.options(cores=3).keys["cores_per_rank"] == 3 and half.keys["cores_per_rank"] == 1


def test_a_call_is_a_task_with_a_result(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOOL", spool.root)
    good, bad = half.submit(8), half.submit(3)
    said, named = plain.submit(word="y"), spool.call(divmod, 7, 2)
    with pytest.raises(TimeoutError):
        good.result(0.01)
    assert good.manifest.time_limit == "1m" and good.id.startswith("half.")
    run_all(spool)
    assert (good.result(), said.result(), named.result()) == (4, "yy", (3, 1))
    assert "said y" in said.output
    assert spool.task(good.id).result() == 4  # found again by its id
    assert bad.state is State.FAILED and bad.exit_code == 1
    with pytest.raises(ValueError, match="3 is odd") as told:
        bad.result()
    assert "is odd" in str(told.value.__cause__) and "Traceback" in bad.output
    assert isinstance(bad.exception(), ValueError) and good.exception() is None


def test_a_failed_call_may_be_tried_again(spool: Spool, tmp_path: Path) -> None:
    def second_time(path: str) -> str:
        import os

        if not os.path.exists(path):
            open(path, "w").close()
            raise OSError("first")
        return "second"

    task = spool.call(package.function(max_attempts=2)(second_time), str(tmp_path / "mark"))
    run_all(spool)
    assert task.result() == "second"
    assert [one["what"] for one in task.history].count("exit") == 2


def test_what_commands_come_to(spool: Spool) -> None:
    good, bad, gone = spool.submit("true"), spool.submit("echo dead; false"), spool.submit("true")
    assert gone.cancel("not wanted") and not spool.submit("true").done
    run_all(spool)
    assert good.result() == 0
    with pytest.raises(TaskFailed, match="FAILED/exit-1.*dead"):
        bad.result()
    with pytest.raises(CancelledError):
        gone.result()
    assert not good.cancel() and gone.cancel()
    run_spool(spool.root, "rm", good.id, check=True)
    with pytest.raises(NoSuchTask):
        good.result()


def test_a_task_that_was_removed_is_missed_soon(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, slept = spool.submit("true"), list[float]()
    task.cancel()
    run_spool(spool.root, "rm", task.id, check=True)
    monkeypatch.setattr(waiting.time, "sleep", slept.append)
    with pytest.raises(NoSuchTask):
        task.result()
    assert sum(slept) < 1


def test_a_foreign_result_is_not_loaded(spool: Spool) -> None:
    import os

    if os.geteuid() != 0:
        pytest.skip("only root can play two users")
    task = spool.call(half, 2)
    run_all(spool)
    os.chown(f"{task.path}/{warm.RESULTS}.1", 12345, -1)
    with pytest.raises(CallLost, match="belongs to user 12345"):
        task.result()


def test_a_function_of_main_that_calls_itself(spool: Spool, tmp_path: Path) -> None:
    program = tmp_path / "main.py"
    program.write_text("""if 1:
        import spool, sys
        @spool.function
        def down(n):
            return n if n == 0 else down(n - 1)
        if __name__ == "__main__":
            print(spool.Spool(sys.argv[1]).call(down, 3).id)
    """)
    ran = subprocess.run(
        [sys.executable, program, spool.root],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    run_all(spool)
    assert spool.task(ran.stdout.strip()).result() == 0


# -- waiting -------------------------------------------------------------------------------------


def test_tasks_and_futures_are_waited_for_alike(spool: Spool) -> None:
    done: Future[int] = Future()
    done.set_result(1)
    never: Future[int] = Future()
    first, second = spool.call(half, 2), spool.call(half, 3)
    assert package.wait([done, never, first], 0.05) == ({done}, {never, first})
    assert package.wait([done, never], return_when=FIRST_COMPLETED) == ({done}, {never})
    run_all(spool)
    seen = list(package.as_completed([done, first, second, first], 10))
    assert set(seen) == {done, first, second} and len(seen) == 3
    assert package.wait([never, second], 10, FIRST_EXCEPTION) == ({second}, {never})
    with pytest.raises(TimeoutError, match=r"1 \(of 2\)"):
        list(package.as_completed([never, first], 0.05))
    with pytest.raises(ValueError, match="Invalid return condition"):
        package.wait([first], return_when="SOON")


def test_a_future_wakes_who_waits(spool: Spool) -> None:
    import threading

    late: Future[int] = Future()
    threading.Timer(0.2, late.set_result, [3]).start()
    began = time.monotonic()
    assert package.wait([late], 10) == ({late}, set())
    assert time.monotonic() - began < 5


def test_the_result_of_what_waits_in_vain_is_a_failure_of_its_own(spool: Spool) -> None:
    bad = spool.submit(["false"])
    child = spool.submit(["true"], after=[bad])
    run_all(spool)
    assert child.wait(timeout=60) and child.state is State.WAITING
    with pytest.raises(TaskFailed, match="waits in vain"):
        child.result(timeout=60)


def test_a_function_may_be_bound_to_a_spool(spool: Spool) -> None:
    task = package.function(spool=spool)(len).submit("abc")
    assert spool.task(task.id).manifest.python
    assert repr(Spool(spool)) == repr(spool)
