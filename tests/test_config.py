"""spool.toml: read as it was meant, or refused with the file, the key and what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spool import config
from spool.config import Settings
from spool.errors import NotASpool, SpoolError
from spool.queue.layout import SETTINGS, Tree


def written(root: Path, text: str | bytes) -> str:
    """A folder with this spool.toml."""
    root.mkdir(exist_ok=True)
    (root / SETTINGS).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(root)


# -- settings ------------------------------------------------------------------------------------


def test_the_template_means_the_defaults(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, config.TEMPLATE)) == Settings()
    assert config.load(written(tmp_path, config.TEMPLATE + "\n")) == Settings()
    assert config.load(written(tmp_path, "format = 1\n")) == Settings()


def test_the_template_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    lines = [
        line.removeprefix("# ") if "=" in line else line for line in config.TEMPLATE.split("\n")
    ]
    shown = "\n".join(line for line in lines if not line.startswith("# spool"))
    assert config.load(written(tmp_path, shown)) == Settings()
    for name in Settings.__annotations__:
        section, key = name.removesuffix("_s").removesuffix("_mb").split("_", 1)
        assert f"[{section}]" in shown and f"\n{key} = " in shown


def test_settings_are_read(tmp_path: Path) -> None:
    text = """
    format = 1
    door.quiet = 0
    lease = { beat = "5s", fence = 30, dead = "1m30s" }
    [launcher]
    idle_timeout = "1h"
    sync = "files"
    """
    assert config.load(written(tmp_path, text)) == Settings(0.0, 5.0, 30.0, 90.0, 3600.0, "files")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[door]\nquiet = 'soon'", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = -1", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = true", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = nan", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = inf", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = [1]", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = { a = 1 }", "door.quiet: expected a duration such as 90"),
        ("[door]\nquiet = 2026-11-22", "door.quiet: expected a duration such as 90"),
        ("[launcher]\nsync = 'often'", "launcher.sync: expected auto, syncfs, files or none"),
        ("[launcher]\nsync = 5", "launcher.sync: expected auto, syncfs, files or none"),
        ("[launcher]\nsync = []", "launcher.sync: expected auto, syncfs, files or none"),
        ("[door]\nquite = '10s'", "unknown setting door.quite; allowed are door.quiet, lease.beat"),
        ("[door]\nquiet_s = 10", "unknown setting door.quiet_s; allowed are"),
        ("[launcher_idle]\ntimeout = 10", "unknown setting launcher_idle.timeout; allowed are"),
        ("speed = 3", "unknown setting speed; allowed are"),
        ("[lease]\ndead = '60s'", "must grow in this order"),
        ("[lease]\nbeat = '2m'", "must grow in this order"),
        ("[lease]\nbeat = 0", "must grow in this order"),
        ("[door", "is not TOML"),
        ("format = 2", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(
    tmp_path: Path, text: str, says: str
) -> None:
    root = written(tmp_path, f"format = 1\n{text}\n")
    with pytest.raises(SpoolError) as caught:
        config.load(root)
    assert str(caught.value).startswith(f"{root}/{SETTINGS}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "format = 2", "format = '1'", "format = true", "[door]"])
def test_another_format_is_no_spool_of_ours(tmp_path: Path, text: str) -> None:
    with pytest.raises(NotASpool, match="this version reads format 1"):
        config.load(written(tmp_path, text))


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotASpool, match="Run: spool init"):
        config.load(str(tmp_path))
    with pytest.raises(SpoolError, match="is not UTF-8"):
        config.load(written(tmp_path, b"format = 1\n# \xff"))


# -- where the spool is --------------------------------------------------------------------------


def test_the_root_is_the_nearest_one_upward(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = f"{tree.root}/apps/deep/deeper"
    os.makedirs(inside)
    for here in (tree.root, inside):
        monkeypatch.chdir(here)
        assert config.find_root() == os.path.realpath(tree.root)


def test_a_named_root_beats_the_environment_beats_the_search(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = written(tmp_path / "one", "format = 1"), written(tmp_path / "other", "format = 1")
    monkeypatch.chdir(tree.root)
    monkeypatch.setenv("SPOOL", one)
    assert config.find_root() == one
    assert config.find_root(other) == other
    monkeypatch.setenv("SPOOL", "")
    assert config.find_root() == os.path.realpath(tree.root)


def test_where_there_is_no_spool_the_way_to_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotASpool, match=r"/nowhere: is no spool .*Run: spool init /nowhere"):
        config.find_root("/nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotASpool, match="no spool here or above. Run: spool init"):
        config.find_root()


def test_a_folder_that_was_removed_under_our_feet_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(NotASpool, match="this folder was removed"):
        config.find_root()


# -- whom we trust -------------------------------------------------------------------------------


@pytest.fixture
def trusted_file(tmp_path: Path) -> Path:
    """~/.config/spool/trusted, not yet written."""
    folder = tmp_path / "config" / "spool"
    folder.mkdir(parents=True)
    return folder / "trusted"


def test_by_default_we_trust_ourselves_alone() -> None:
    assert config.trusted_users() == {os.geteuid()}


def test_others_are_trusted_by_number_or_name(trusted_file: Path) -> None:
    trusted_file.write_text("12345\nroot\n")
    assert config.trusted_users() == {os.geteuid(), 12345, 0}


@pytest.mark.parametrize("word", ["no-such-user-here", "²", "-1"])
def test_a_user_nobody_knows_is_refused(trusted_file: Path, word: str) -> None:
    trusted_file.write_text(f"{word}\n")
    with pytest.raises(SpoolError, match="there is no user"):
        config.trusted_users()


def test_a_list_that_is_no_text_is_refused(trusted_file: Path) -> None:
    trusted_file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(SpoolError, match="there is no user"):
        config.trusted_users()


def test_a_list_that_others_may_write_is_refused(trusted_file: Path) -> None:
    trusted_file.write_text("12345\n")
    trusted_file.chmod(0o666)
    with pytest.raises(SpoolError, match="only its owner may write it"):
        config.trusted_users()
