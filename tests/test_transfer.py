"""Real transfers in and out of tasks: files, http, rsync, scp, templates, and sources that fail."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import make_tree, run_spool, where
from test_door_transfers import needs, ssh
from test_launcher import QUICK, events, path_of

from spool.api import Spool
from spool.queue import files, layout, tasks

__all__ = ["ssh"]
LARGE = os.urandom(1 << 20) * 3
HOST = "127.0.0.1"


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "spool", QUICK)


def configure(tree, text):
    files.replace(tree.settings, f"format = 1\n{QUICK}{text}".encode())


def carry(tree, **keys):
    """A task of these keys, and what its transfer says: exit code, standard output."""
    task = Spool(tree.root).submit("true", **keys)
    way = "in" if "stage_in" in keys else "out"
    return task, lambda: again(tree, task, way)


def again(tree, task, way):
    path = path_of(tree, task.id)
    words = [sys.executable, "-m", "spool.launcher.transfer", tree.root, path, task.id, way]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout


def got(tree, task, name):
    return Path(path_of(tree, task.id), name)


@pytest.fixture
def source(tmp_path):
    """A folder of files to bring in."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "large.bin").write_bytes(LARGE)
    for name in ("a.h5", "b.h5", "sub/c.h5", "with space.h5"):
        (folder / name).write_text(name)
    return folder


# -- on this machine -----------------------------------------------------------------------------


def test_a_file_a_folder_and_a_glob_are_copied_into_place(tree, source):
    task, go = carry(
        tree,
        stage_in=[
            f"{source}/large.bin",
            {"source": f"{source}/a.h5", "target": "deep/er/x.h5"},
            {"source": f"{source}/sub", "target": "whole"},
            {"source": f"{source}/*.h5", "target": "all/"},
            {"source": f"{source}/b.h5", "target": "linked", "via": "link"},
        ],
    )
    assert go() == (0, "")
    assert got(tree, task, "large.bin").read_bytes() == LARGE
    assert got(tree, task, "deep/er/x.h5").read_text() == "a.h5"
    assert got(tree, task, "whole/c.h5").read_text() == "sub/c.h5"
    found = sorted(path.name for path in got(tree, task, "all").iterdir())
    assert found == ["a.h5", "b.h5", "with space.h5"]
    assert os.readlink(got(tree, task, "linked")) == f"{source}/b.h5"
    assert not got(tree, task, layout.LANDING).exists()
    assert go() == (0, "")  # once more, over what is there


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"source": "/no/such/file"}, "/no/such/file: No such file or directory"),
        ({"source": "/no/such/*.h5"}, "nothing matches"),
        ({"source": "{0}/a.h5", "size": 5}, "has 4 bytes, expected 5"),
        ({"source": "{0}/a.h5", "sha256": "0" * 64}, "its sha256 is"),
        ({"source": "{0}/sub", "size": 5}, "is a folder"),
        ({"source": "{0}/a.h5", "via": "pigeon"}, "via 'pigeon' is unknown; known are copy"),
        ({"source": "{0}/gone", "via": "link"}, "No such file"),
    ],
)
def test_a_source_that_is_missing_or_wrong_fails_at_once(tree, source, item, says):
    item = {key: v.format(source) if key == "source" else v for key, v in item.items()}
    begun = time.monotonic()
    task, go = carry(tree, stage_in=[item])
    code, said = go()
    assert code == 1 and says in said
    assert time.monotonic() - begun < 5
    assert not [name for name in os.listdir(path_of(tree, task.id)) if name == "a.h5"]


def test_what_is_right_is_proven(tree, source):
    digest = hashlib.sha256(LARGE).hexdigest()
    item = {"source": f"{source}/large.bin", "size": len(LARGE), "sha256": digest}
    _, go = carry(tree, stage_in=[item])
    assert go() == (0, "")


def test_a_source_that_changes_while_it_is_read_is_not_believed(tree, tmp_path):
    growing = tmp_path / "growing"
    growing.write_bytes(b"x" * (1 << 24))
    stop = threading.Event()

    def grow():
        with open(growing, "ab", buffering=0) as file:
            while not stop.wait(0.0005):
                file.write(b"x")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        _, go = carry(tree, stage_in=[str(growing)])
        code, said = go()
    finally:
        stop.set()
        writer.join()
    assert code == 75 and "changed while it was read" in said


def test_outputs_by_glob_go_whole_to_their_place(tree, tmp_path):
    out = tmp_path / "out"
    (out).mkdir()
    (out / "one").write_text("old")
    task, go = carry(
        tree,
        stage_out=[
            {"source": "**/*.h5", "target": f"{out}/many/"},
            {"source": "one", "target": f"{out}/one"},
        ],
    )
    got(tree, task, "sub").mkdir()
    for name in ("x.h5", "sub/y.h5", "one"):
        got(tree, task, name).write_text(name)
    assert go() == (0, "")
    assert sorted(os.listdir(out / "many")) == ["x.h5", "y.h5"]
    assert (out / "one").read_text() == "one"


@pytest.mark.parametrize("glob", ["*.h5", "m*.json", "hist*"])
def test_outputs_that_are_not_there_fail(tree, tmp_path, glob):
    _, go = carry(tree, stage_out=[{"source": glob, "target": f"{tmp_path}/"}])
    code, said = go()
    assert code == 1 and "nothing in the task's directory matches" in said


# -- http ----------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves LARGE at /data with ranges; breaks off, fails and disappears as it is told."""

    asked: list[tuple[str, str]] = []
    cut = fail = 0
    etag = '"one"'
    put: dict[str, bytes] = {}
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind = type(self)
        wanted = self.headers.get("Range", "")
        kind.asked.append((self.path, wanted))
        if self.path.startswith("/gone"):
            return self.answer(404, b"")
        if kind.fail > 0:
            kind.fail -= 1
            return self.answer(503, b"")
        start = 0
        if wanted and self.headers.get("If-Range") == kind.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", kind.etag)
        self.send_header("Content-Length", str(len(LARGE) - start))
        self.end_headers()
        if kind.cut > 0:
            kind.cut -= 1
            self.wfile.write(LARGE[start : start + 1_000_000])
            self.close_connection = True
            return None
        self.wfile.write(LARGE[start:])
        return None

    def do_PUT(self):
        type(self).put[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(201, b"")

    def answer(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def web():
    """A real server on loopback; its class tells what was asked."""
    kind = type("Fresh", (Server,), {"asked": [], "put": {}})
    with http.server.ThreadingHTTPServer((HOST, 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        kind.url = f"http://{HOST}:{server.server_address[1]}"
        yield kind
        server.shutdown()
        thread.join()


def test_http_goes_on_where_the_connection_broke(tree, web):
    web.cut = 2
    task, go = carry(tree, stage_in=[{"source": f"{web.url}/data?x=1", "target": "d"}])
    assert go() == (0, "")
    assert got(tree, task, "d").read_bytes() == LARGE
    assert [asked for _, asked in web.asked] == ["", "bytes=1000000-", "bytes=2000000-"]


def test_http_begins_anew_where_the_source_is_another(tree, web):
    web.cut = 3
    task, go = carry(tree, stage_in=[{"source": f"{web.url}/data", "target": "d"}])
    code, said = go()
    assert code == 75 and "too early" in said
    web.etag = '"two"'
    assert go() == (0, "")
    assert got(tree, task, "d").read_bytes() == LARGE


def test_http_that_fails_for_a_moment_is_tried_again_and_what_is_gone_is_not(tree, web):
    web.fail = 2
    _, go = carry(tree, stage_in=[f"{web.url}/data"])
    assert go() == (0, "")
    _, go = carry(tree, stage_in=[f"{web.url}/gone"])
    code, said = go()
    assert code == 1 and "404" in said
    assert sum(path == "/gone" for path, _ in web.asked) == 1


def test_http_takes_outputs(tree, web):
    task, go = carry(tree, stage_out=[{"source": "r", "target": f"{web.url}/up/"}])
    got(tree, task, "r").write_bytes(LARGE)
    assert go() == (0, "")
    assert web.put == {"/up/r": LARGE}


def test_nobody_listens_is_no_reason_to_give_up_before_the_deadline(tree, web):
    url = f"http://{HOST}:9/data"
    _, go = carry(tree, stage_in=[url])
    code, said = go()
    assert code == 75 and "refused" in said


# -- other programs ------------------------------------------------------------------------------


def test_a_template_brings_what_it_is_told(tree, source):
    configure(tree, '[transfers]\nmule = "cp {source} {target} || exit 66"\n')
    item = {"source": f"{source}/with space.h5", "target": "in here", "via": "mule"}
    task, go = carry(tree, stage_in=[item])
    assert go() == (0, "")
    assert got(tree, task, "in here").read_text() == "with space.h5"
    _, go = carry(tree, stage_in=[{"source": "mule://gone", "via": "mule"}])
    code, said = go()
    assert code == 1 and "No such file" in said


def ssh_setting(options):
    return f"[staging]\nssh = {json.dumps(shlex.join(['ssh', *options]))}\n"


FAR = pytest.mark.parametrize("via", ["rsync", "scp"])


@pytest.mark.system
@needs("ssh", "scp", "sshd", "ssh-keygen", "rsync")
@FAR
def test_over_ssh_in_and_out(tree, source, ssh, tmp_path, via):
    configure(tree, ssh_setting(ssh))
    digest = hashlib.sha256(LARGE).hexdigest()
    first = {"source": f"{HOST}:{source}/large.bin", "target": "m", "via": via, "sha256": digest}
    folder = {"source": f"{HOST}:{source}/sub", "target": "whole", "via": via}
    task, go = carry(tree, stage_in=[first, folder])
    assert go() == (0, "")
    assert got(tree, task, "m").read_bytes() == LARGE
    assert got(tree, task, "whole/c.h5").read_text() == "sub/c.h5"
    (tmp_path / "back").mkdir()
    task, go = carry(
        tree, stage_out=[{"source": "*.h5", "target": f"{HOST}:{tmp_path}/back/", "via": via}]
    )
    for name in ("x.h5", "a b.h5"):
        got(tree, task, name).write_text(name)
    assert go() == (0, "")
    assert sorted(os.listdir(tmp_path / "back")) == ["a b.h5", "x.h5"]


@pytest.mark.system
@needs("ssh", "scp", "sshd", "ssh-keygen", "rsync")
@FAR
def test_over_ssh_what_is_missing_fails_and_a_host_that_is_down_does_not(tree, ssh, via):
    configure(tree, ssh_setting(ssh))
    _, go = carry(tree, stage_in=[{"source": f"{HOST}:/no/such", "via": via}])
    code, said = go()
    assert code == 1 and "No such file" in said
    configure(tree, ssh_setting([*ssh[:-2], "-o", "Port=9"]))
    _, go = carry(tree, stage_in=[{"source": f"{HOST}:/etc/hostname", "via": via}])
    assert go()[0] == 75


@pytest.mark.system
@needs("ssh", "sshd", "ssh-keygen", "rsync")
def test_rsync_goes_on_with_what_came_already(tree, source, ssh):
    configure(tree, ssh_setting(ssh))
    task, go = carry(tree, stage_in=[f"{HOST}:{source}/large.bin"])
    landing = got(tree, task, f"{layout.LANDING}/0")
    landing.mkdir(parents=True)
    (landing / "large.bin").write_bytes(LARGE[:-100])
    assert go() == (0, "")
    assert got(tree, task, "large.bin").read_bytes() == LARGE


# -- with a stager -------------------------------------------------------------------------------


def test_a_transfer_that_fails_for_now_waits_and_at_its_deadline_fails(tree, spool):
    url = f"http://{HOST}:9/data"
    patient = spool.submit("true", stage_in=[url])
    hasty = spool.submit("true", stage_in=[{"source": url, "deadline": "1s"}])
    gone = spool.submit("true", stage_in=["/no/such/file"])
    left = run_spool(tree.root, "launcher", "--idle-timeout", "0")
    assert left.returncode == 0, left.stderr
    assert where(tree, patient.id).startswith("WAITING/until@")
    (put_off,) = events(tree, patient.id, "queued")
    assert put_off["stage"] == "prepare" and "refused" in put_off["why"]
    assert where(tree, hasty.id).startswith("FAILED/prepare@")
    assert "in vain until its deadline" in events(tree, hasty.id, "broke")[-1]["reason"]
    assert where(tree, gone.id).startswith("FAILED/prepare@")
    assert "/no/such/file: No such file" in run_spool(tree.root, "show", gone.id).stdout
    why = run_spool(tree.root, "show", patient.id).stdout
    assert "refused" in why
    run_spool(tree.root, "release", patient.id)
    assert where(tree, patient.id).startswith("READY/prepare.c1@")


def test_from_the_command_line(tree, source, tmp_path):
    sent = run_spool(
        tree.root,
        *("submit", "--stage-in", "source/a.h5", "--stage-in", f"{source}/b.h5:deep/x"),
        *("--stage-in", "host:/data/y:z", "--stage-in", "http://h:8080/a/b?c=d:w"),
        *("--stage-out", f"*.h5:{tmp_path}/out/", "--stage-out", "r:host:/far/"),
        *("--retry", "timeout:3:time_limit=*2,backoff=1m", "--container", "box=my.sif"),
        *("--preprocess", "true", "--hook-limit", "1m", "--", "true"),
        cwd=tmp_path,
    )
    assert sent.returncode == 0, sent.stderr
    task_id = sent.stdout.strip()
    wanted = tasks.load(path_of(tree, task_id), task_id).manifest
    pairs = [(one.source, one.target) for one in wanted.stage_in_list]
    assert pairs == [
        (f"{source}/a.h5", ""),
        (f"{source}/b.h5", "deep/x"),
        ("host:/data/y", "z"),
        ("http://h:8080/a/b?c=d", "w"),
    ]
    outs = [(one.source, one.target) for one in wanted.stage_out]
    assert outs == [("*.h5", f"{tmp_path}/out/"), ("r", "host:/far/")]
    assert wanted.retry["timeout"].set == {"time_limit": "*2"}
    assert wanted.container.kind == "box"
    for wrong in (["--stage-out", "x"], ["--retry", "timeout"], ["--retry", "oops:3"]):
        assert run_spool(tree.root, "submit", *wrong, "--", "true").returncode in (1, 2)
