"""What a user may set without a flag: flag > SHOAL_* environment > config.toml in the home folder > default.

The file is flat, with the names of the flags: `max_memory = "8GB"`, `threads = 2`, `relay = ["/ip4/..."]`.
"""

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home
from shoal.swarm.sessions.generation import Exactness

from .options import BY_NEED

FILE = "config.toml"
PREFIX = "SHOAL_"
MAX_PORT = 65535


def _listed(value: object) -> object:
    """An environment variable holds a list with commas between."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Addresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """A field that is None was not set anywhere."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    # a node
    model: str = BY_NEED  # or embedded name, folder, hub id, name or id in the swarm
    name: str | None = None
    layers: str | None = None
    rebalance: bool = True
    dtype: str = "auto"
    device: str = "auto"
    max_memory: str | None = None
    threads: int | None = Field(None, ge=1, le=4096)
    host: str = "0.0.0.0"  # noqa: S104  a volunteer's node is there to be reached
    port: int = Field(0, ge=0, le=MAX_PORT)
    announce: Addresses = ()
    relay: Addresses = ()
    nat: bool = True
    api_host: str = "127.0.0.1"
    api_port: int | None = Field(None, ge=0, le=MAX_PORT)
    swarm_name: str | None = Field(None, min_length=1, max_length=64)
    public: bool = False
    gateway_only: bool = False
    ledger: bool = False
    kv_disk: str | None = None
    kv_memory: str | None = None
    upload_limit: str | None = None  # "20 Mbit/s" for weights that others fetch; "0": they get none
    follow: str | None = Field(None, min_length=1, max_length=64)  # name of a training run
    standby_memory: str = "256MiB"
    drain_limit: float = Field(10.0, ge=0, le=86400)
    # generate and chat
    ask_model: str | None = None  # what --model says there
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    local_layers: int = Field(0, ge=0)
    max_hops: int = Field(8, ge=1, le=64)
    exactness: Exactness = "replay"
    prefill: str = "auto"
    keep_snapshots: bool = False
    # where generate and chat ask, when not at this home's own node
    api: str | None = None
    api_key: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(home: Home, flags: dict[str, Any]) -> Settings:
    """flags: by field name; None means that the flag was not given

    raises: UsageError, one line that names the place and the key
    """
    file = home.root / FILE

    class Here(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    given = {key: value for key, value in flags.items() if value is not None and value != []}
    try:
        return Here(**given)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error
    except ValidationError as error:
        raise UsageError(_complaint(error, file, given)) from error


def _complaint(error: ValidationError, file: Path, flags: dict[str, Any]) -> str:
    """The first thing that is wrong, where it stands, and what to do."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "?"
    if first["type"] == "extra_forbidden":
        close = get_close_matches(key, Settings.model_fields, 1)
        advice = f"did you mean {close[0]!r}?" if close else "remove the line"
        return f"{file}: there is no setting {key!r}; {advice}"
    if key in flags:
        place = f"--{key.replace('_', '-')}"
    elif PREFIX + key.upper() in os.environ:
        place = PREFIX + key.upper()
    else:
        place = f"{file}: {key}"
    reason = first["msg"].removeprefix("Input ").split(", unable")[0]
    return f"{place} {reason}, not {first['input']!r}"
