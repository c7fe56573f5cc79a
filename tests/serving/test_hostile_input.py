"""Hostile requests are answered with 4xx or 200, and nobody else waits for them. Grammars go to the real compiler."""

import threading

import hostile
import pytest
from hostile import GRAMMARS, PAIRS, RAW, REGRESSIONS, raw_http, watched_health
from waiting import wait_until
from wire import generations, greedy_text

from harness import Server

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions_on_the_edge(scripted: Server, name: str) -> None:
    status, reply = scripted.post(CHAT, REGRESSIONS[name])
    assert status == 200 or 400 <= status < 500, reply


def test_a_grammar_that_allows_no_text_is_the_callers_mistake(scripted: Server) -> None:
    status, reply = scripted.post(CHAT, GRAMMARS["schema loop"])
    assert (status, reply["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize("name", RAW)
def test_bytes_on_the_edge(scripted: Server, name: str) -> None:
    data, allowed = RAW[name]
    reply = raw_http(scripted, data)
    status = int(reply.split(b" ")[1]) if reply else 0
    assert status in allowed, reply
    assert scripted.get("/health")[0] == 200


@pytest.mark.engine
def test_grammars_are_answered_or_refused(engine: Server) -> None:
    expected = greedy_text(engine)
    with watched_health(engine):
        answers = {name: engine.post(CHAT, body) for name, body in (GRAMMARS | REGRESSIONS).items()}
    wrong = {
        name: (status, reply) for name, (status, reply) in answers.items() if status != 200 and not 400 <= status < 500
    }
    assert not wrong
    assert {answers[name][0] for name in ("regex unbalanced", "grammar unclosed", "json not json")} == {400}
    wait_until(lambda: generations(engine) == 0)
    assert greedy_text(engine) == expected


@pytest.mark.engine
def test_a_bad_grammar_leaves_nothing_for_the_next_good_one(engine: Server) -> None:
    for good, bad in PAIRS:
        first = engine.post(CHAT, good)[1]
        for _ in range(3):
            assert engine.post(CHAT, bad)[0] == 400
            status, again = engine.post(CHAT, good)
            assert status == 200
            assert again["usage"]["completion_tokens"] == first["usage"]["completion_tokens"]


@pytest.mark.engine
def test_nobody_waits_while_a_grammar_is_checked(engine: Server) -> None:
    """A second of checking; were it done on the event loop, no other request would be answered meanwhile."""
    body = hostile.structured(json=hostile.ranges(700))
    answers: list[int] = []
    asker = threading.Thread(target=lambda: answers.append(engine.post(CHAT, body)[0]))
    asker.start()
    others = 0
    while asker.is_alive():
        assert engine.get("/health")[0] == 200
        others += 1
        asker.join(0.01)
    assert answers[0] in (200, 400)
    assert others > 10
