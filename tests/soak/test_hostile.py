"""Every hostile request many times over on the real engine, with /health asked all the while."""

import time

import pytest
from hostile import GRAMMARS, PAIRS, RAW, REGRESSIONS, raw_http, watched_health
from report import Report
from waiting import wait_until
from wire import generations, greedy_text

from harness import Server

pytestmark = pytest.mark.soak
CHAT = "/v1/chat/completions"
ROUNDS = 3


def test_hostile_requests(engine: Server, report: Report) -> None:
    expected = greedy_text(engine)
    took_s: dict[str, float] = {}
    wrong: list[str] = []
    statuses: dict[str, int] = {}
    requests = {name: [body] for name, body in (GRAMMARS | REGRESSIONS).items()}
    requests |= {f"pair {number}": [good, bad, good, bad] for number, (good, bad) in enumerate(PAIRS)}
    with watched_health(engine) as health_s:
        for _ in range(ROUNDS):
            for name, bodies in requests.items():
                for body in bodies:
                    asked_s = time.monotonic()
                    status, reply = engine.post(CHAT, body)
                    took_s[name] = max(took_s.get(name, 0.0), time.monotonic() - asked_s)
                    statuses[str(status)] = statuses.get(str(status), 0) + 1
                    if status != 200 and not 400 <= status < 500:
                        wrong.append(f"{name}: {status} {reply}")
            for name, (data, allowed) in RAW.items():
                answer = raw_http(engine, data)
                if (int(answer.split(b" ")[1]) if answer else 0) not in allowed:
                    wrong.append(f"{name}: {answer!r}")
    slowest = sorted(took_s.items(), key=lambda item: -item[1])[:5]
    wait_until(lambda: generations(engine) == 0)
    figures = {
        "requests": sum(statuses.values()) + ROUNDS * len(RAW),
        "by_status": statuses,
        "slowest_s": {name: round(seconds, 2) for name, seconds in slowest},
        "health_asked": len(health_s),
        "health_max_s": round(max(health_s), 2),
        "complaints": len(wrong),
    }
    report.record("hostile", figures)
    assert not wrong, "\n".join(wrong)
    assert greedy_text(engine) == expected
