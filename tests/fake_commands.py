"""Commands of batch systems that cannot run here: each prints what the real one has printed."""

from __future__ import annotations

import os
from pathlib import Path

RECORDED = Path(__file__).parent / "recorded"


def fake(tmp_path, monkeypatch, name: str, text: str) -> None:
    """A command of that name, first on the PATH: a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    if not os.environ["PATH"].startswith(f"{folder}:"):
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def prints(tmp_path, monkeypatch, name: str, file: str = "", **more) -> Path:
    """It prints a recorded file, exits with `code`, after `err`; the file its words are told in."""
    log = tmp_path / f"{name}.asked"
    heard = f'echo "$*" >>{log}'
    err = f"cat >&2 <<'X'\n{more['err']}\nX" if more.get("err") else ":"
    out = f"cat {RECORDED / file}" if file else more.get("out", ":")
    fake(tmp_path, monkeypatch, name, f"{heard}\n{err}\n{out}\nexit {more.get('code', 0)}")
    return log
