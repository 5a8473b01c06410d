"""From a TOML file to a checked config; whatever is wrong is told in one line that names the key."""

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from shoal.swarm.errors import UsageError

from .config import ConfigFile, TrainingConfig
from .pipeline.settings import stage_run
from .strategies.settings import STRATEGIES

AUTO = "auto"
MAY_BE_AUTO = ("interval", "preset")
DEFAULT_STRATEGY = "sparse"
MAX_NAME = 64  # of the run that one stage is
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<at>[^`]*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<at>[^`]*)`)?")
_WRONG = re.compile(r"(?P<what>.*) - at `\$\.?(?P<at>[^`]*)`")
_TYPES = {"array": "a list", "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_TYPES |= {"object": "a table", "null": "nothing"}


def read_config(path: Path) -> ConfigFile:
    """raises: UsageError"""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    try:
        return config_from(tables, path.absolute().parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def config_from(tables: Mapping[str, Any], base: Path) -> ConfigFile:
    """raises: UsageError"""
    strategy, auto = _strategy(tables.get("strategy", DEFAULT_STRATEGY))
    try:
        config = msgspec.convert({**_for_pipeline(tables), "strategy": strategy}, TrainingConfig)
    except msgspec.ValidationError as error:
        raise UsageError(_complaint(str(error))) from error
    config = msgspec.structs.replace(config, inner=_with_total(config))
    for key, settings in (("strategy", config.strategy), ("inner", config.inner), ("pipeline", config.pipeline)):
        try:
            settings.check()
        except ValueError as error:
            raise UsageError(f"[{key}] {error}") from error
    config.limits.check()
    if not config.data.files:
        raise UsageError("data.files names no file or folder")
    if auto and config.pipeline.cut:
        raise UsageError(f"strategy.{auto[0]} cannot be auto in a pipeline, whose stages have to agree on it: name it")
    if config.pipeline.cut and len(stage_run(config.name, config.pipeline.stages)) > MAX_NAME:
        raise UsageError(f"name is too long for a run in stages; take at most {MAX_NAME - 12} characters")
    if not config.name.isprintable():
        raise UsageError("name has characters that cannot be printed")
    return ConfigFile(config, base, auto)


def with_stage(file: ConfigFile, stage: int) -> ConfigFile:
    """The place of this node in a pipeline, from the command line. raises: UsageError"""
    pipeline = msgspec.structs.replace(file.config.pipeline, stage=stage)
    if not pipeline.cut:
        raise UsageError("--stage is for a config with a [pipeline] of several stages")
    try:
        pipeline.check()
    except ValueError as error:
        raise UsageError(f"[pipeline] {error}") from error
    return ConfigFile(msgspec.structs.replace(file.config, pipeline=pipeline), file.base, file.auto)


def _for_pipeline(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage may have one replica, so unless told otherwise its rounds need no other."""
    pipeline, group = tables.get("pipeline"), tables.get("group", {})
    cut = isinstance(pipeline, dict) and pipeline.get("stages", 1) != 1
    if not cut or not isinstance(group, dict) or "quorum" in group:
        return tables
    return {**tables, "group": {"quorum": 1, **group}}


def _strategy(given: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The table of a named strategy with what the user changes, and which of its keys are `auto`. raises: UsageError"""
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, dict):
        raise UsageError('strategy is a name ("diloco") or a table [strategy] with a name')
    name = table.get("name", DEFAULT_STRATEGY)
    if not isinstance(name, str) or name not in STRATEGIES:
        raise UsageError(f"strategy.name: there is no {name!r}; there are {', '.join(STRATEGIES)}")
    auto = tuple(key for key in MAY_BE_AUTO if table.get(key) == AUTO)
    defaults: dict[str, Any] = msgspec.to_builtins(STRATEGIES[name])
    changes = {key: value for key, value in table.items() if key not in auto}
    outer = changes.get("outer", {})
    if isinstance(outer, dict):
        changes["outer"] = {**defaults["outer"], **outer}
    return {**defaults, **changes}, auto


def _with_total(config: TrainingConfig) -> Any:  # noqa: ANN401  InnerSettings, without its import
    """A schedule that falls ends with the run, unless told otherwise."""
    schedule = config.inner.schedule
    if schedule.kind == "constant" or schedule.total or not config.rounds:
        return config.inner
    steps = config.rounds * config.strategy.interval // config.strategy.fragments
    total = max(steps, schedule.warmup + 1)
    return msgspec.structs.replace(config.inner, schedule=msgspec.structs.replace(schedule, total=total))


def _complaint(message: str) -> str:
    """msgspec's message in the words of the file."""
    if match := _UNKNOWN.fullmatch(message):
        key, at = match["key"], match["at"] or ""
        close = get_close_matches(key, _keys_of(at), 1)
        place = f"the table [{at}]" if at else "the config"
        return f"{place} has no key {key!r}; " + (f"did you mean {close[0]!r}?" if close else "remove the line")
    if match := _MISSING.fullmatch(message):
        return f"{'.'.join(filter(None, (match['at'], match['key'])))} is missing"
    if match := _WRONG.fullmatch(message):
        words = re.sub(r"`([^`]*)`", lambda quoted: _in_words(quoted[1]), match["what"])
        return f"{match['at']}: {words[:1].lower()}{words[1:]}"
    return message


def _in_words(types: str) -> str:
    return " or ".join(_TYPES.get(kind.strip(), kind.strip()) for kind in types.split("|"))


def _keys_of(place: str) -> list[str]:
    """The keys of a table by its dotted name; [] when there is no such table."""
    kind: Any = TrainingConfig
    for part in filter(None, place.split(".")):
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        kind = fields.get(part)
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return []
    return [field.name for field in msgspec.structs.fields(kind)]
