"""Settings: from the environment (PARALLAX_*), then from `.env` in the current directory, then the defaults here.

`app` reads them once. A setting that a person writes in milliseconds (PARALLAX_AGENT_TIMEOUT) ends in `_ms` here.
"""

from __future__ import annotations

import os
import re
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from parallax.errors import ConfigurationError


def _default_data_dir() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "parallax"


class AccountSetting(BaseModel):
    """A further account at a provider, beside the one of the provider's own variables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    provider: Literal["anthropic", "openai", "gemini"]
    key: SecretStr
    base_url: str | None = None
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)


class LocalAgent(BaseModel):
    """An agent of this installation's own: one that runs by itself at an `endpoint`, or a `command` that speaks ACP.

    `env` are variables of the command in whose values {home}, {model} and {url} are filled in; {url} is the base URL of
    `provider` at the gateway, and `key` the variable that gets the token for it. `auth` is the method that it wants to
    be called before it takes work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/@]+(/[^\s?#]*)?$")
    command: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    provider: Literal["anthropic", "openai", "gemini"] = "openai"
    key: str | None = None
    auth: str | None = None
    resume: Literal["none", "load", "resume"] = "none"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.endpoint) == bool(self.command):
            raise ValueError(f"the agent '{self.id}' needs either an endpoint (HTTP) or a command (ACP)")
        return self


class Settings(BaseSettings):
    """Everything that an installation decides. `.env.example` lists and explains each one."""

    model_config = SettingsConfigDict(
        env_prefix="PARALLAX_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    data_dir: Path = Field(default_factory=_default_data_dir)
    database_url: SecretStr | None = None
    workspaces_dir: Path | None = None
    patterns_dir: Path = Path("patterns")
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_url: str | None = None
    api_key: SecretStr | None = None
    execution_engine: bool = True
    sandbox: Literal["require", "auto", "off"] | None = None  # None: require, and auto for agents of type scripted
    agent_timeout_ms: int = Field(default=30_000, ge=100, validation_alias="PARALLAX_AGENT_TIMEOUT")
    agent_silence_ms: int = Field(default=600_000, ge=200)
    agent_retries: int = Field(default=2, ge=0, le=20)
    max_agents: int | None = Field(default=None, ge=1)
    max_executions: int = Field(default=100, ge=1)
    max_recoveries: int = Field(default=5, ge=1)
    min_free_mb: int = Field(default=512, ge=0)
    retention_days: float = Field(default=90, ge=0)
    retention_count: int = Field(default=10_000, ge=1)
    workspace_days: float = Field(default=7, ge=0)
    workspace_max_gb: float = Field(default=5, gt=0)
    agent_script: Path | None = None
    scripted_ledger: Path | None = None
    failpoints: str = ""
    notify_command: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "warning"

    # The model providers' own names: a key that works in the user's shell works here. Only the gateway reads them.
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_base_url: str = Field(default="https://api.anthropic.com", validation_alias="ANTHROPIC_BASE_URL")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str = Field(default="https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL")
    gemini_api_key: SecretStr | None = Field(default=None, validation_alias="GEMINI_API_KEY")
    gemini_base_url: str = Field(
        default="https://generativelanguage.googleapis.com", validation_alias="GOOGLE_GEMINI_BASE_URL"
    )
    local_agents: tuple[LocalAgent, ...] = ()
    accounts: tuple[AccountSetting, ...] = ()
    account_rule: Literal["order", "spread"] = "order"
    prices: Path | None = None
    egress: str = ""
    record: bool = False
    record_mb: int = Field(default=200, ge=1)
    replay: Path | None = None

    # How the server gets at git remotes; no agent is given any of these.
    git_tokens: dict[str, SecretStr] = Field(default_factory=dict)  # host -> token
    github_app_id: str | None = None
    github_private_key: SecretStr | None = None
    github_private_key_path: Path | None = None
    github_api_url: str = "https://api.github.com"
    encryption_key: SecretStr | None = None
    encryption_key_path: Path | None = None

    @field_validator(
        "data_dir", "workspaces_dir", "patterns_dir", "agent_script", "scripted_ledger", "prices", "replay"
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("notify_command")
    @classmethod
    def _split(cls, value: str | None) -> str | None:
        if value is not None and not shlex.split(value):
            raise ValueError("it names no program")
        return value

    @property
    def notify_argv(self) -> tuple[str, ...]:
        """The command that calls a person, split as a shell would; empty for nobody."""
        return tuple(shlex.split(self.notify_command or ""))

    @cached_property
    def workspaces(self) -> Path:
        """Where workspaces and mirrors live."""
        return self.workspaces_dir or self.data_dir / "workspaces"

    def provider_environment(self) -> dict[str, str]:
        """The environment with the providers' keys that `.env` names: where an account is looked for."""
        names = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
        keys = {names[account.provider]: account.key for account in self.accounts}
        own = (self.anthropic_api_key, self.openai_api_key, self.gemini_api_key)
        keys |= {name: key for name, key in zip(names.values(), own, strict=True) if key is not None}
        return dict(os.environ) | {name: key.get_secret_value() for name, key in keys.items()}

    def github_key(self) -> str | None:
        """The App's private key, from the variable or from the file that one names."""
        if self.github_private_key is not None:
            return self.github_private_key.get_secret_value().replace("\\n", "\n")  # one line in many an .env
        if (path := self.github_private_key_path) is None:
            return None
        try:
            return path.expanduser().read_text()
        except OSError as error:
            raise ConfigurationError(
                f"PARALLAX_GITHUB_PRIVATE_KEY_PATH: {path} cannot be read ({error.strerror})"
            ) from None

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "parallax.db"

    @property
    def homes(self) -> Path:
        """Private homes of agents, outside world-writable directories."""
        return self.data_dir / "homes"


def load(**overrides: Any) -> Settings:
    """Read the settings; a bad value becomes one sentence that names the variable."""
    try:
        return Settings(**overrides)
    except SettingsError as error:  # a value that should be JSON, and is not
        field_ = re.search(r'field "(\w+)"', str(error))
        variable = f"PARALLAX_{field_[1].upper()}" if field_ else "a setting"
        raise ConfigurationError(f"{variable} is no JSON of the kind it should be; see .env.example") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        variable = name if name.isupper() else f"PARALLAX_{name.upper()}"
        raise ConfigurationError(f"{variable}: {first['msg']} (got {first['input']!r}); see .env.example") from None
