"""Settings come from the environment, then from .env; a bad value names its variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallax.app import Parallax
from parallax.config import Settings, load
from parallax.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "PARALLAX_PORT", "PARALLAX_AGENT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_in_dotenv_counts_as_an_account_and_does_not_print(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=sk-ant-from-the-file\nPARALLAX_PORT=9000\n")
    settings = load()
    assert settings.port == 9000
    assert settings.provider_environment()["ANTHROPIC_API_KEY"] == "sk-ant-from-the-file"
    assert "sk-ant-from-the-file" not in repr(settings)


def test_the_environment_wins_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PARALLAX_PORT=9000\n")
    monkeypatch.setenv("PARALLAX_PORT", "9001")
    assert load().port == 9001


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PARALLAX_PORT", "80x", "PARALLAX_PORT: Input should be a valid integer"),
        ("PARALLAX_AGENT_TIMEOUT", "5", "PARALLAX_AGENT_TIMEOUT: Input should be greater than or equal to 100"),
        ("PARALLAX_SANDBOX", "maybe", "PARALLAX_SANDBOX: Input should be 'require', 'auto' or 'off'"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        load()
    assert str(raised.value).startswith(words)


@pytest.mark.parametrize("wish", [{"sandbox": "require"}, {"failpoints": "x=kill"}])
async def test_what_cannot_be_kept_is_refused_at_the_start(
    wish: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without bubblewrap
    with pytest.raises(ConfigurationError, match=r"install bubblewrap|is for tests"):
        async with Parallax(Settings(data_dir=tmp_path / "data", **wish)):  # type: ignore[arg-type]
            pass
    assert not (tmp_path / "data" / "parallax.db").exists()


async def test_a_data_directory_has_one_owner_and_the_second_is_told_who(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with Parallax(settings):
        with pytest.raises(ConfigurationError, match=r"another Parallax \(process \d+\) owns"):
            async with Parallax(settings):
                pass
    async with Parallax(settings):
        pass


async def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with Parallax(settings) as first:
        key = first.key
    async with Parallax(settings) as second:
        assert second.key == key
    assert (tmp_path / "data" / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_setting_that_should_be_json_and_is_not_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLAX_GIT_TOKENS", "ghp_not_json")
    with pytest.raises(ConfigurationError, match=r"^PARALLAX_GIT_TOKENS is no JSON") as caught:
        load(_env_file=None)
    assert "ghp_not_json" not in str(caught.value)
