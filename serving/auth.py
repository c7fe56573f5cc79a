"""API keys: kept as SHA-256 digests, compared in constant time. No key configured means loopback only."""

import difflib
import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from burrstone.batching.errors import Unauthenticated
from burrstone.serving.config import AuthConfig, ConfigError

ANONYMOUS_TENANT = "default"
_MIN_KEY_CHARS = 16
_DIGEST_MARK = "sha256:"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`tenant` is the name written before the key, or one made from the digest."""

    tenant: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Who is calling. With no keys every caller is the default tenant."""

    keys: tuple[ApiKey, ...]

    def tenant(self, presented: str | None) -> str:
        """The tenant of this key. Raises Unauthenticated."""
        if not self.keys:
            return ANONYMOUS_TENANT
        if not presented:
            raise Unauthenticated(
                "No API key was given: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            )
        digest = hashlib.sha256(presented.encode()).digest()
        found: str | None = None
        # Every key is compared, so that the time does not tell which one matched.
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.tenant
        if found is None:
            raise Unauthenticated("The API key is wrong.")
        return found


def load_keys(config: AuthConfig, environ: Mapping[str, str] = os.environ) -> Authenticator:
    """Keys of the file and of the environment variable. Raises ConfigError."""
    entries: list[tuple[str, str]] = []
    if config.keys_file is not None:
        entries += [(f"{config.keys_file}:{number}", line) for number, line in _file_lines(config.keys_file)]
    from_environment = environ.get(config.keys_env, "")
    entries += [(f"${config.keys_env}", part) for part in from_environment.split(",") if part.strip()]
    return Authenticator(tuple(_parse_key(where, text.strip()) for where, text in entries))


def check_bind(host: str, authenticator: Authenticator) -> None:
    """Raises ConfigError when an address beyond loopback is asked for and no key guards it."""
    if authenticator.keys or is_loopback(host):
        return
    raise ConfigError(
        f"http.host is {host!r}, which other machines can reach, but no API key is configured. "
        "Set auth.keys_file or BURRSTONE_API_KEYS, or bind 127.0.0.1."
    )


def check_tenants(names: Iterable[str], authenticator: Authenticator) -> None:
    """Raises ConfigError for a configured tenant that no key belongs to: its terms would never hold."""
    known = {key.tenant for key in authenticator.keys} or {ANONYMOUS_TENANT}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the keys are named {', '.join(sorted(known))}"
            raise ConfigError(f"scheduler.tenants.{name}: no API key has this name{hint}")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def presented_key(authorization: str | None, x_api_key: str | None) -> str | None:
    """The key of either header; `Authorization: Bearer` wins."""
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else None
    return x_api_key


def _file_lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.expanduser().read_text()
    except OSError as error:
        raise ConfigError(f"auth.keys_file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"auth.keys_file: {path} is not a text file") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not kept:
        raise ConfigError(
            f"auth.keys_file: {path} holds no key; write a key a line: `key`, `name:key` or `name:sha256:HEX`"
        )
    return kept


def _parse_key(where: str, text: str) -> ApiKey:
    """`key`, `name:key`, or either with `sha256:` and 64 hex digits in place of the key."""
    name, separator, secret = text.rpartition(_DIGEST_MARK)
    if separator:
        if re.fullmatch(r"[0-9a-fA-F]{64}", secret) is None:
            raise ConfigError(f"{where}: after `{_DIGEST_MARK}` come the 64 hex digits of the key's SHA-256")
        digest = bytes.fromhex(secret)
        named, name = bool(name), name.removesuffix(":")
    else:
        name, separator, rest = text.partition(":")
        named, secret = bool(separator), rest if separator else text
        if len(secret) < _MIN_KEY_CHARS:
            raise ConfigError(f"{where}: an API key needs at least {_MIN_KEY_CHARS} characters")
        if not (secret.isascii() and secret.isprintable()):
            raise ConfigError(f"{where}: an API key is printable ASCII, as headers carry nothing else unchanged")
        digest = hashlib.sha256(secret.encode()).digest()
    if named and not name:
        raise ConfigError(f"{where}: the name before the colon is empty; write `name:key` or the bare key")
    return ApiKey(tenant=name if named else f"key-{digest.hex()[:8]}", digest=digest)
