"""What the sandbox shows of toolchains: found by looking, and never a directory in which secrets lie."""

from __future__ import annotations

from pathlib import Path

from parallax.agents.runtimes.visible import Shown, managers, on_path, plan, program, shown


def made(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_link_on_the_way_is_shown_and_what_it_leads_to(tmp_path: Path) -> None:
    made(tmp_path / "real" / "file")
    (tmp_path / "dir").symlink_to("real")
    (tmp_path / "link").symlink_to(tmp_path / "dir" / ".." / "real" / "file")
    assert shown(tmp_path / "link") == [
        Shown(tmp_path / "link", str(tmp_path / "dir" / ".." / "real" / "file")),
        Shown(tmp_path / "dir", "real"),
        Shown(tmp_path / "real" / "file"),
    ]
    (tmp_path / "round").symlink_to("round")
    assert Shown(tmp_path / "round", "round") in shown(tmp_path / "round")
    (tmp_path / "nowhere").symlink_to("gone")
    assert shown(tmp_path / "nowhere") == [Shown(tmp_path / "nowhere", "gone")]


def test_a_program_brings_its_packages_or_its_virtual_environment(tmp_path: Path) -> None:
    made(tmp_path / "npm" / "lib" / "node_modules" / "@a" / "cli" / "run.js")
    tool = tmp_path / "npm" / "bin" / "cli"
    tool.parent.mkdir()
    tool.symlink_to("../lib/node_modules/@a/cli/run.js")
    assert Shown(tmp_path / "npm" / "lib" / "node_modules") in program(tool)
    base = made(tmp_path / "base" / "bin" / "python3")
    (tmp_path / "base" / "lib").mkdir()
    made(tmp_path / "venv" / "pyvenv.cfg", f"home = {base.parent}\nversion = 3.11\n")
    made(tmp_path / "venv" / "bin" / "aider")
    found = program(tmp_path / "venv" / "bin" / "aider")
    assert {Shown(tmp_path / "venv"), Shown(base.parent), Shown(tmp_path / "base" / "lib")} <= set(found)


def test_of_a_home_only_programs_are_shown(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made(home / ".cargo" / "bin" / "cargo")
    made(home / ".cargo" / "credentials.toml")
    made(home / ".local" / "bin" / "tool")
    made(home / ".local" / "lib" / "tool.so")
    made(home / ".local" / "share" / "keyrings" / "login.keyring")
    made(home / ".nvm" / "versions" / "node" / "bin" / "node")
    made(tmp_path / "opt" / "jdk" / "bin" / "java")
    wanted = [*managers(home), *on_path(home / ".cargo" / "bin", home), *on_path(home / ".local" / "bin", home)]
    wanted += [*on_path(tmp_path / "opt" / "jdk" / "bin", home), *on_path(home, home), *on_path(Path("bin"), home)]
    paths = {item.path for item in plan(wanted, [], [home])}
    assert paths == {
        home / ".cargo" / "bin", home / ".local" / "bin", home / ".local" / "lib", home / ".nvm",
        tmp_path / "opt" / "jdk",
    }  # fmt: skip


def test_nothing_is_mounted_twice_or_over_what_is_there(tmp_path: Path) -> None:
    inner, outer = tmp_path / "a" / "b" / "c", tmp_path / "a" / "b"
    wanted = [Shown(inner), Shown(outer), Shown(Path("/usr/bin/x")), Shown(inner / "link", "../x")]
    assert plan(wanted, [Path("/usr")], []) == [Shown(outer)]
