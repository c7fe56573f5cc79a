"""API keys: where they come from, how they are kept and compared, and what may be bound without one."""

import hashlib
import hmac
from pathlib import Path

import pytest

from burrstone.batching.errors import Unauthenticated
from burrstone.serving.auth import Authenticator, check_bind, check_tenants, is_loopback, load_keys, presented_key
from burrstone.serving.config import AuthConfig, ConfigError

KEY = "correct-horse-battery"
OTHER = "another-key-of-some-length"


def keys_of(text: str) -> Authenticator:
    """Keys as the environment variable gives them."""
    return load_keys(AuthConfig(), {"BURRSTONE_API_KEYS": text})


def file_keys(folder: Path, text: str | bytes) -> Authenticator:
    file = folder / "keys"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_keys(AuthConfig(keys_file=file), {})


@pytest.mark.parametrize(
    ("keys", "tenant", "message"),
    [
        (f"anna:{KEY}", "ana", "scheduler.tenants.ana: no API key has this name; did you mean 'anna'"),
        (f"anna:{KEY},bob:{OTHER}", "zzz", "the keys are named anna, bob"),
        ("", "anna", "the keys are named default"),
    ],
)
def test_terms_of_a_tenant_without_a_key_are_refused(keys: str, tenant: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tenants([tenant], keys_of(keys))


def test_terms_of_tenants_with_keys_are_taken() -> None:
    check_tenants(["anna"], keys_of(f"anna:{KEY},bob:{OTHER}"))
    check_tenants(["default"], keys_of(""))


def test_without_keys_everyone_is_the_default_tenant() -> None:
    assert keys_of("").tenant(None) == "default"
    assert keys_of("").tenant("anything") == "default"


def test_keys_of_file_and_environment_count_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# people\n\nanna:{KEY}\n")
    keys = load_keys(AuthConfig(keys_file=file, keys_env="OUR_KEYS"), {"OUR_KEYS": f"bob:{OTHER}, "})
    assert (keys.tenant(KEY), keys.tenant(OTHER)) == ("anna", "bob")


@pytest.mark.parametrize("presented", [None, "", "wrong", KEY + "x", KEY[:-1], KEY.upper(), f"anna:{KEY}", "\u00e9"])
def test_anything_but_the_key_is_refused(presented: str | None) -> None:
    with pytest.raises(Unauthenticated):
        keys_of(f"anna:{KEY}").tenant(presented)


def test_a_digest_stands_for_its_key_and_is_no_key_itself() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for text in (digest, digest.upper()):
        keys = keys_of(f"anna:sha256:{text}")
        assert keys.tenant(KEY) == "anna"
        with pytest.raises(Unauthenticated):
            keys.tenant(text)
    assert keys_of(f"sha256:{digest}").tenant(KEY) == f"key-{digest[:8]}"


def test_a_key_of_64_hex_digits_is_a_key() -> None:
    key = "0123456789abcdef" * 4
    assert keys_of(f"anna:{key}").tenant(key) == "anna"
    with pytest.raises(ConfigError, match="64 hex digits"):
        keys_of("anna:sha256:abc")


def test_no_key_is_kept_in_the_clear() -> None:
    keys = keys_of(f"anna:{KEY},{OTHER}")
    assert KEY not in repr(keys) and OTHER not in repr(keys)
    assert {key.digest for key in keys.keys} == {hashlib.sha256(text.encode()).digest() for text in (KEY, OTHER)}


def test_a_key_without_a_name_is_a_tenant_of_its_own() -> None:
    keys = keys_of(f"{KEY},{OTHER}")
    tenants = {keys.tenant(KEY), keys.tenant(OTHER)}
    assert len(tenants) == 2 and all(tenant.startswith("key-") for tenant in tenants)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever matches, and when none does: as many comparisons, each on whole digests."""
    compared: list[bytes] = []
    compare_digest = hmac.compare_digest

    def compare(kept: bytes, presented: bytes) -> bool:
        compared.append(kept)
        return compare_digest(kept, presented)

    keys = keys_of(f"a:{KEY},b:{OTHER},c:a-third-key-for-good-measure")
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for presented in (KEY, OTHER, "no key at all"):
        compared.clear()
        try:
            keys.tenant(presented)
        except Unauthenticated:
            assert presented == "no key at all"
        assert compared == [key.digest for key in keys.keys]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna:short", r"\$BURRSTONE_API_KEYS: an API key needs at least 16 characters"),
        ("short", "at least 16 characters"),
        (f":{KEY}", "the name before the colon is empty"),
        ("schl\u00fcssel-mit-umlauten", "ASCII"),
        ("a-key-with\ta-tab-inside", "ASCII"),
    ],
)
def test_keys_that_cannot_work_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keys_of(text)


def test_a_bad_line_is_named_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        file_keys(tmp_path, f"anna:{KEY}\n# note\nbob:hunter2\n")
    assert f"{tmp_path / 'keys'}:3: " in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no key"), ("# only\n\n", "holds no key"), (b"\xff\xfe\x00", "is not a text file")],
)
def test_files_without_keys(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        file_keys(tmp_path, content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth\.keys_file: cannot read .*nowhere: No such file"):
        load_keys(AuthConfig(keys_file=tmp_path / "nowhere"), {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, keys_of(""))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.example.com"])
def test_a_wider_bind_needs_a_key(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"http\.host is .*auth\.keys_file or BURRSTONE_API_KEYS, or bind 127\.0\.0\.1"
    ):
        check_bind(host, keys_of(""))
    check_bind(host, keys_of(KEY))


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "key"),
    [
        (None, None, None),
        ("Bearer k", None, "k"),
        ("bearer  k ", "other", "k"),
        (None, "k", "k"),
        ("Basic k", "other", None),
        ("Bearer", None, ""),
    ],
)
def test_the_key_is_read_from_either_header(authorization: str | None, x_api_key: str | None, key: str | None) -> None:
    assert presented_key(authorization, x_api_key) == key
