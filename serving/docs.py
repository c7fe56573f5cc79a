"""`python -m burrstone.serving.docs FOLDER`: the reference pages that are made from the code."""

import sys
from collections.abc import Mapping
from pathlib import Path

from burrstone.serving.config_load import options
from burrstone.serving.status import TABLE


def pages() -> Mapping[str, str]:
    """File name -> text."""
    return {"config.md": _config(), "errors.md": _errors()}


def _config() -> str:
    lines = [
        "# Configuration",
        "",
        "One YAML file (`burrstone serve -c serve.yaml`); every key is also a flag (`--http.port 8080`), and flags win.",
        "Unknown keys are refused with the nearest valid name. Written by `make docs` from the config types.",
        "",
        "| Key | Default | Meaning |",
        "|---|---|---|",
    ]
    for option in options():
        default = option.field.get_default()
        shown = "" if option.field.is_required() or default is None else f"`{default}`"
        lines.append(f"| `{option.key}` | {shown} | {option.field.description} |")
    return "\n".join(lines) + "\n"


def _errors() -> str:
    lines = [
        "# Errors",
        "",
        'HTTP answers OpenAI\'s envelope `{"error": {"message", "type", "param", "code"}}` (`/v1/messages`: Anthropic\'s);',
        "gRPC answers the status with `google.rpc` details (ErrorInfo, BadRequest, RetryInfo). `param` names the field.",
        "429 and 503 carry Retry-After. `code` is the default; many errors name a closer one. Written by `make docs`.",
        "",
        "| Error | HTTP | type | code | gRPC | metric label |",
        "|---|---|---|---|---|---|",
    ]
    for error, status in TABLE.items():
        code = f"`{status.code}`" if status.code else ""
        lines.append(
            f"| {error.__name__} | {status.http} | `{status.type}` | {code} | {status.grpc.name} | `{status.label}` |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text)
