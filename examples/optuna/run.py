"""run - Optuna proposes, a spool evaluates: 200 evaluations, a launcher killed in the middle.

    python3 examples/optuna/run.py [WORK_DIR]

Needs   Python 3.11. Where Optuna or spool is missing, both are installed into WORK_DIR/venv.
Writes  WORK_DIR only, by default a fresh temporary directory, which is kept to be looked into.
Fails   exit 1: an evaluation was lost, or told twice.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

HERE = Path(__file__).resolve()
EVALUATIONS, AT_ONCE, KILL_AT = 200, 8, 80


def evaluate(x: float, y: float) -> float:
    """What an expensive program would do: here the valley of Rosenbrock, and some waiting."""
    time.sleep(0.05)
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def prepared(work: Path) -> None:
    """Go on in an environment that has Optuna and spool, made here if there is none."""
    if all(importlib.util.find_spec(name) for name in ("optuna", "spool", "msgspec")):
        return
    python = work / "venv/bin/python"
    if not python.exists():
        print(f"installing Optuna into {work}/venv ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "optuna", "setuptools"], check=True)
        subprocess.run([*pip, HERE.parent.parent.parent], check=True)
    os.execv(python, [str(python), str(HERE), str(work)])


def start_launcher(root: str) -> subprocess.Popen[bytes]:
    """A launcher as anybody would start it: in a batch job, on another node, ..."""
    words = [sys.executable, "-P", "-m", "spool.cli", "--spool", root, "launcher", "--quiet"]
    return subprocess.Popen([*words, "--cores", "2", "--idle-timeout", "30s"])


def main(work: Path) -> int:
    """Optimise; the exit code."""
    import optuna

    from spool import Spool, SpoolExecutor

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spool = Spool.create(work / "spool")
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=7, constant_liar=True))
    launcher = start_launcher(spool.root)
    under_way: dict[Future[float], optuna.Trial] = {}
    asked = told = 0
    with SpoolExecutor(spool, workflow="optuna") as executor:
        while told < EVALUATIONS:
            while asked < EVALUATIONS and len(under_way) < AT_ONCE:
                trial = study.ask()
                x, y = trial.suggest_float("x", -2, 2), trial.suggest_float("y", -1, 3)
                under_way[executor.submit(evaluate, x, y)] = trial
                asked += 1
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                study.tell(under_way.pop(future), future.result())
                told += 1
                if told == KILL_AT:
                    print(f"{told} told; kill -9 of the launcher, another one is started")
                    launcher.kill()
                    launcher.wait()
                    launcher = start_launcher(spool.root)
    launcher.terminate()
    launcher.wait()
    return report(study, spool)


def report(study: object, spool: object) -> int:
    """Print what came out; 1 if anything is missing."""
    import optuna

    assert isinstance(study, optuna.Study)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    best = study.best_params
    wrong = sum(
        abs(trial.value - ((1 - trial.params["x"]) ** 2
            + 100 * (trial.params["y"] - trial.params["x"] ** 2) ** 2)) > 1e-9
        for trial in complete
    )  # fmt: skip
    lost = sum(event["what"] == "lost" for task in spool.tasks() for event in task.history)
    print(f"best {study.best_value:.4f} at x={best['x']:.3f}, y={best['y']:.3f}")
    print(f"{len(complete)} of {EVALUATIONS} evaluations complete, {wrong} wrong;", end=" ")
    print(f"the kill cut {lost} tasks short, which ran again. Look into {spool.root}")
    return int(len(complete) != EVALUATIONS or wrong > 0)


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="spool-optuna-"))
    place.mkdir(parents=True, exist_ok=True)
    prepared(place.resolve())
    sys.exit(main(place.resolve()))
