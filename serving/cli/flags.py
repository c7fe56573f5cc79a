"""Command-line flags made from the configuration's own fields, so that every key is a flag of the same name."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from burrstone.serving.config import ConfigError
from burrstone.serving.config_load import LoadedConfig, load_config, options

# Short names people expect; every key also has its dotted flag.
_ALIASES = {
    "http.host": ["--host"],
    "http.port": ["--http-port"],
    "grpc.port": ["--grpc-port"],
    "engine.tensor_parallel_size": ["--tensor-parallel-size", "-tp"],
    "engine.max_model_len": ["--max-model-len"],
    "engine.max_num_seqs": ["--max-num-seqs"],
    "scheduler.policy": ["--scheduler-policy"],
    "scheduler.admission": ["--admission"],
    "auth.keys_file": ["--keys-file"],
}


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL, --config and one flag for each configuration key."""
    parser.add_argument(
        "model_argument", nargs="?", metavar="MODEL", help="folder, hub id, or the embedded model's name (default)"
    )
    parser.usage = f"{parser.prog} [MODEL] [-c FILE] [--KEY VALUE ...]"
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="YAML configuration file")
    group = parser.add_argument_group("configuration keys (values are YAML)")
    for option in options():
        names = [*_ALIASES.get(option.key, []), _flag(option.key)]
        default = None if option.field.is_required() else option.field.get_default()
        shown = "" if default is None or default == () or default == {} else f" [{default}]"
        help_text = f"{option.field.description}{shown}".replace("%", "%%")
        group.add_argument(*names, dest=option.key, default=None, metavar="VALUE", help=help_text)


def nearest_flag(given: str, known: Sequence[str] = ()) -> str | None:
    """The flag that a misspelt one most likely means; among the configuration's where the command has none `known`."""
    if not known:
        known = [name for names in _ALIASES.values() for name in names] + [_flag(option.key) for option in options()]
    near = difflib.get_close_matches(given.partition("=")[0], known, n=1)
    return near[0] if near else None


def config_from_flags(arguments: argparse.Namespace) -> LoadedConfig:
    """The configuration these flags ask for. Raises ConfigError."""
    overrides: dict[str, Any] = {}
    for option in options():
        text = getattr(arguments, option.key)
        if text is not None:
            overrides[option.key] = _parse_value(option.key, text)
    if arguments.model_argument is not None:
        if arguments.model_argument.endswith((".yaml", ".yml")):
            raise ConfigError(
                f"{arguments.model_argument} stands where the model's name goes; give a configuration file with --config"
            )
        overrides["model"] = arguments.model_argument
    return load_config(arguments.config, overrides)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _parse_value(key: str, text: str) -> Any:
    if key in ("model", "engine.speculative.model"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{_flag(key)}: {text!r} is not a YAML value: {problem}") from error
