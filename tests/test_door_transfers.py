"""Real transfers into the door: whatever the tool and its order of files, a task arrives whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess

import pytest
from conftest import eventually

from spool import config
from spool.queue import tasks
from spool.queue.admit import Door
from spool.queue.layout import State

LARGE = os.urandom(1 << 20) * 3
FILES = {"a.in": b"a", "manifest.json": b"", "sub/mesh.h5": b"mesh", "z.bin": LARGE}
ID = "scan-7.26112215-00-abcdefghij"


def needs(*programs):
    missing = [one for one in programs if shutil.which(one, path=PATH) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@pytest.fixture
def source(tmp_path):
    """What is to be sent; its manifest stands before the large file, and declares nothing."""
    path = tmp_path / "outbox" / ID
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    write_manifest(path)
    return path


def write_manifest(path, **more):
    (path / "manifest.json").write_text(json.dumps({"command": ["true"], **more}))


@pytest.fixture
def door(owner):
    return Door(owner, config.trusted_users())


def admitted(door):
    """Look again; where the only task lies, once it is admitted."""
    door.look()
    return list(tasks.spots(door.tree, (State.READY,)))


def until_admitted(door):
    eventually(lambda: admitted(door), "the arrival is admitted")
    (spot,) = admitted(door)
    return spot.path(door.tree)


def arrived_whole(path):
    for name, content in FILES.items():
        with open(f"{path}/{name}", "rb") as file:
            assert name == "manifest.json" or file.read() == content, name
    found = [name for _, _, names in os.walk(path) for name in names]
    assert sorted(found) == ["a.in", "history.jsonl", "manifest.json", "mesh.h5", "z.bin"]


def through(door, *words):
    """Let a transfer run while the door is watched; nothing may be admitted before it ends."""
    with subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True) as sender:
        while sender.poll() is None:
            early = admitted(door)
            assert not early or sender.poll() is not None, "admitted while still under way"
        fault = sender.stderr.read()
    assert sender.returncode == 0, fault


def created(tree, name=""):
    return f"{tree.state(State.CREATED)}/{name}"


def test_mv(tree, door, source):
    through(door, "mv", source, created(tree))
    arrived_whole(until_admitted(door))


def test_cp(tree, door, source):
    through(door, "cp", "-r", source, created(tree))
    arrived_whole(until_admitted(door))


@pytest.mark.system
@needs("rsync")
@pytest.mark.parametrize(
    "options",
    [[], ["--inplace"], ["--partial-dir=.rsync-partial"], ["--delay-updates"], ["--whole-file"]],
    ids=" ".join,
)
def test_rsync(tree, door, source, options):
    words = ["rsync", "-a", "--bwlimit=3000", *options]
    through(door, *words, source, created(tree))
    arrived_whole(until_admitted(door))


@pytest.mark.system
@needs("rsync")
def test_rsync_interrupted_and_run_again(tree, door, source):
    """The manifest was there, all was quiet: what declares its inputs is waited for."""
    write_manifest(source, inputs=[{"path": "z.bin", "size": len(LARGE)}, "sub/mesh.h5"])
    first = subprocess.Popen(
        ["rsync", "-a", "--bwlimit=500", "--partial", str(source), created(tree)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    eventually(lambda: has_temporary(created(tree, ID)), "the large file is under way")
    os.killpg(first.pid, signal.SIGINT)
    first.wait()
    quiet = Looks(door)
    eventually(lambda: quiet.count >= 20 or quiet.look(), "twenty looks")
    assert admitted(door) == []
    through(door, "rsync", "-a", "--bwlimit=9000", "--partial", source, created(tree))
    arrived_whole(until_admitted(door))


def has_temporary(path):
    return any(name.startswith(".z.bin.") for name in os.listdir(path)) if path_there(path) else 0


def path_there(path):
    return os.path.isdir(path)


class Looks:
    """Looks at the door, counted."""

    def __init__(self, door):
        self.door, self.count = door, 0

    def look(self):
        self.door.look()
        self.count += 1


@pytest.mark.system
@needs("rsync")
def test_rsync_of_inputs_with_checksums_is_taken_the_moment_it_is_whole(tree, owner, source):
    digest = hashlib.sha256(LARGE).hexdigest()
    write_manifest(source, inputs=[{"path": "z.bin", "sha256": digest}])
    patient = Door(owner, config.trusted_users())
    patient.quiet = 3600.0
    # What is proven may be taken before rsync itself has ended, so no look is had meanwhile.
    subprocess.run(["rsync", "-a", str(source), created(tree)], check=True)
    arrived_whole(until_admitted(patient))


@pytest.mark.system
@needs("rsync")
def test_rsync_run_again_after_admission_leaves_a_duplicate_not_a_second_run(tree, door, source):
    through(door, "rsync", "-a", source, created(tree))
    until_admitted(door)
    through_again = ["rsync", "-a", str(source), created(tree)]
    subprocess.run(through_again, check=True)
    eventually(lambda: door.look() or os.listdir(created(tree)) == [], "the second one is taken")
    (spot,) = tasks.spots(tree, (State.FAILED,))
    assert spot.group == "duplicate@26112215-00"
    assert len(admitted(door)) == 1


# -- over ssh ------------------------------------------------------------------------------------

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""


@pytest.fixture(scope="module")
def ssh(tmp_path_factory):
    """A real sshd on loopback, with keys of its own; the options that ssh and scp need for it."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "user_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    log = folder / "log"
    server = subprocess.Popen(
        [shutil.which("sshd", path=PATH), "-D", "-f", folder / "config", "-E", log]
    )
    eventually(lambda: listens(port) or server.poll() is not None, "sshd listens")
    assert server.poll() is None, log.read_text()
    yield [
        *("-i", f"{folder}/user_key", "-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", f"Port={port}"),
    ]
    server.terminate()
    server.wait()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.system
@needs("ssh", "scp", "sshd", "ssh-keygen")
@pytest.mark.parametrize("protocol", [["-s"], ["-O"]], ids=["sftp", "old scp"])
def test_scp(tree, door, source, ssh, protocol):
    words = ["scp", "-q", "-r", "-l", "24000", *protocol, *ssh]
    through(door, *words, source, f"127.0.0.1:{created(tree)}")
    arrived_whole(until_admitted(door))


@pytest.mark.system
@needs("ssh", "sshd", "ssh-keygen", "rsync")
def test_rsync_over_ssh(tree, door, source, ssh):
    words = ["rsync", "-a", "-z", "--bwlimit=3000", "-e", " ".join(["ssh", *ssh])]
    through(door, *words, source, f"127.0.0.1:{created(tree, '@xpcs')}/")
    arrived_whole(until_admitted(door))
    (spot,) = admitted(door)
    assert spot.group.startswith("c1.s-xpcs@")


@pytest.mark.system
@needs("ssh", "sshd", "ssh-keygen", "tar")
def test_tar_through_ssh(tree, door, source, ssh):
    line = "tar -C {0} -cf - {1} | ssh {2} 127.0.0.1 tar -C {3} -xf -"
    words = line.format(source.parent, ID, " ".join(ssh), created(tree))
    through(door, "sh", "-c", words)
    arrived_whole(until_admitted(door))
