"""What features bring: the arithmetic of rounds, and servers that fail. (How long things take is not tested.)"""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from burrstone.batching.errors import UsageError
from burrstone.bench import features
from burrstone.bench.features import Round, measure_features, summarize
from burrstone.bench.peers.servers import Launch, free_port


def one(cached: int, ttft_s: float, tokens_per_s: float, text: str = "same") -> Round:
    return Round(1000, cached, ttft_s, tokens_per_s, [text])


def found(**more: Round) -> dict[str, list[Round]]:
    turns = {"plain": one(900, 0.1, 30.0), "no cache": one(0, 0.5, 30.0), "n-gram": one(900, 0.1, 45.0)}
    turns |= {"plain again": one(900, 0.1, 30.0)}
    return {
        name: [value] for name, value in (turns | {key.replace("_", " "): value for key, value in more.items()}).items()
    }


def test_each_server_is_compared_with_the_plain_one() -> None:
    rows = summarize(found())
    assert (rows["uncached_tokens_saved"]["value"], rows["uncached_tokens_saved"]["ok"]) == (0.9, True)
    assert (rows["ttft_ratio"]["value"], rows["ttft_ratio"]["noise"]) == (5.0, 0.0)
    assert rows["speculation_tokens_per_s_ratio"]["value"] == 1.5
    assert rows["speculation_tokens_per_s_ratio"]["same_texts"] is True


def test_noise_is_how_far_the_plain_one_is_from_itself() -> None:
    rows = summarize(found(plain_again=one(900, 0.2, 20.0)))
    assert rows["ttft_ratio"]["noise"] == 0.5 and rows["speculation_tokens_per_s_ratio"]["noise"] == 0.5
    assert rows["ttft_ratio"]["value"] == 3.333


def test_other_texts_are_told() -> None:
    broken = found()
    broken["n-gram"] = [one(900, 0.1, 45.0, "another")]
    assert summarize(broken)["speculation_tokens_per_s_ratio"]["same_texts"] is False


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """The port of a server that knows no POST."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(("up", "told"), [(True, "HTTP Error 501"), (False, "Connection refused")])
def test_a_server_that_fails_is_told(up: bool, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() if up else contextlib.nullcontext(free_port()) as port:
        monkeypatch.setattr(features, "burrstone", lambda *_: Launch([], port, "/ready"))
        monkeypatch.setattr(features, "all_running", lambda *_: contextlib.nullcontext())
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: .*{told}"):
            measure_features(1, lambda _: None)
