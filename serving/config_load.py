"""YAML file + command-line values -> one ServeConfig, and where each value came from."""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from burrstone.serving.config import ConfigError, ServeConfig


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """`origins`: dotted key -> the file or flag that set it; keys not in it have their default."""

    config: ServeConfig
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Option:
    """One leaf of the configuration. `section` is the pydantic model it belongs to."""

    key: str
    field: FieldInfo
    section: type[BaseModel]


def load_config(file: Path | None, overrides: Mapping[str, Any] | None = None) -> LoadedConfig:
    """Defaults, then the file, then `overrides` (dotted key -> value). Raises ConfigError naming key, rule and fix."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if file is not None:
        values = _read_yaml(file)
        _check_keys(values, ServeConfig, str(file))
        origins |= {key: str(file) for key in _leaf_keys(values, ServeConfig)}
    for key, value in (overrides or {}).items():
        _check_path(key)
        _set_dotted(values, key, value)
        origins[key] = "command line"
    try:
        return LoadedConfig(ServeConfig.model_validate(values), origins)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from error


def options(section: type[BaseModel] = ServeConfig, prefix: str = "") -> Iterator[Option]:
    """Every leaf of the configuration, in the order it is declared."""
    for name, field in section.model_fields.items():
        inner = section_type(field)
        if inner is None:
            yield Option(prefix + name, field, section)
        else:
            yield from options(inner, f"{prefix}{name}.")


def section_type(field: FieldInfo) -> type[BaseModel] | None:
    """The section behind a field (`X` or `X | None`), or None for a leaf."""
    annotation: Any = field.annotation
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file} must hold a mapping of keys to values, not {type(loaded).__name__}")
    return loaded


def _check_keys(values: Mapping[Any, Any], section: type[BaseModel], where: str, prefix: str = "") -> None:
    for key, value in values.items():
        field = section.model_fields.get(str(key))
        if field is None:
            raise ConfigError(_unknown(f"{prefix}{key}", str(key), section, where, prefix))
        inner = section_type(field)
        if inner is not None and isinstance(value, dict):
            _check_keys(value, inner, where, f"{prefix}{key}.")
        item = _item_type(field)
        if item is not None:
            for place, entry in _entries(value):
                if isinstance(entry, dict):
                    _check_keys(entry, item, where, f"{prefix}{key}{place}.")


def _item_type(field: FieldInfo) -> type[BaseModel] | None:
    """The section that each entry of a list or mapping is, or None."""
    collects = typing.get_origin(field.annotation) in (tuple, dict)
    arguments = typing.get_args(field.annotation) if collects else ()
    return next((part for part in arguments if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"[{number}]", entry) for number, entry in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f".{name}", entry) for name, entry in value.items())


def _check_path(dotted: str) -> None:
    section: type[BaseModel] = ServeConfig
    prefix = ""
    for part in dotted.split("."):
        field = section.model_fields.get(part)
        if field is None:
            raise ConfigError(_unknown(dotted, part, section, "command line", prefix))
        inner = section_type(field)
        if inner is None:
            return
        section, prefix = inner, f"{prefix}{part}."


def _unknown(dotted: str, key: str, section: type[BaseModel], where: str, prefix: str) -> str:
    near = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
    everywhere = [option.key for option in options() if option.key.split(".")[-1] == key]
    if near:
        hint = f"did you mean {prefix + near[0]!r}?"
    elif everywhere:
        hint = f"did you mean {everywhere[0]!r}?"
    else:
        hint = f"valid keys here: {', '.join(section.model_fields)}"
    return f"{where}: unknown key {dotted!r}; {hint}"


def _leaf_keys(values: Mapping[str, Any], section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        inner = section_type(section.model_fields[key])
        if inner is not None and isinstance(value, dict):
            yield from _leaf_keys(value, inner, f"{prefix}{key}.")
        else:
            yield prefix + key


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    values[leaf] = value


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        origin = origins.get(key)
        given = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
        source = f" (from {origin})" if origin else ""
        lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{given}{source}")
    return "\n".join(lines)
