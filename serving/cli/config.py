"""`burrstone config show|validate`: the effective configuration, and where each value came from."""

import argparse
import json
from typing import Any

from burrstone.serving.cli.flags import add_config_flags, config_from_flags
from burrstone.serving.config_load import LoadedConfig, options
from burrstone.serving.engine.kernels import check_kernels


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("config", help="show or validate a configuration")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print the effective configuration and where each value came from")
    add_config_flags(show)
    show.add_argument("--json", action="store_true", help="print JSON: {key: {value, origin}}")
    show.set_defaults(run=_show)
    validate = actions.add_parser("validate", help="exit 0 when the configuration is valid, 2 when it is not")
    add_config_flags(validate)
    validate.set_defaults(run=_validate)


def rows(loaded: LoadedConfig) -> list[tuple[str, Any, str]]:
    """(key, JSON value, origin) of every key; a section that is off has one row."""
    dumped = loaded.config.model_dump(mode="json")
    shown: dict[str, tuple[str, Any, str]] = {}
    for option in options():
        key, value = option.key, dumped
        for depth, part in enumerate(option.key.split("."), 1):
            value = value[part]
            if value is None:
                key = ".".join(option.key.split(".")[:depth])
                break
        shown[key] = (key, value, loaded.origins.get(key, "default"))
    return list(shown.values())


def _show(arguments: argparse.Namespace) -> int:
    table = rows(config_from_flags(arguments))
    if arguments.json:
        print(json.dumps({key: {"value": value, "origin": origin} for key, value, origin in table}, indent=2))
        return 0
    key_width = max(len(key) for key, _, _ in table)
    values = [json.dumps(value) for _, value, _ in table]
    value_width = max(len(value) for value in values)
    for (key, _, origin), value in zip(table, values, strict=True):
        print(f"{key:<{key_width}}  {value:<{value_width}}  {origin}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    config = config_from_flags(arguments).config
    if config.profile != "auto":
        check_kernels(config, config.profile)
    print("The configuration is valid.")
    return 0
