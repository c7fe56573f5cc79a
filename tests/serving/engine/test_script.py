"""Scripts of the scripted engine: every mistake is named, and answers end by the engine's own rules."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.serving.config import ConfigError
from burrstone.serving.engine.script import Limits, Replay, Rule, Script, load_script, parse_script, replay

EOS = 0


def rules(*entries: Any) -> Script:
    return parse_script({"rules": list(entries)}, "s.yaml")


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([], "s.yaml must be a mapping"),
        ({"rulez": []}, "s.yaml: unknown key 'rulez'; known: delay_ms, rules"),
        ({"rules": {}}, "s.yaml: rules must be a list"),
        ({"delay_ms": -1}, "s.yaml: delay_ms must be a number from 0 to inf"),
        ({"delay_ms": True}, "s.yaml: delay_ms must be a number"),
        ({"rules": [3]}, "s.yaml: rules[0] must be a mapping"),
        ({"rules": [{"match": "a"}, {}]}, "s.yaml: rules[1] needs `match`, a regular expression"),
    ],
)
def test_scripts_that_are_refused(loaded: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_script(loaded, "s.yaml")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"matsh": "a"}, "unknown key 'matsh'; known: cached_tokens"),
        ({"match": "("}, "match is not a regular expression"),
        ({"text": 3}, "text must be a string"),
        ({"tokens": [1, -1]}, "tokens must be a list of token ids"),
        ({"tokens": [True]}, "tokens must be a list of token ids"),
        ({"tokens": "12"}, "tokens must be a list of token ids"),
        ({"text": "a", "tokens": [1]}, "give text or tokens, not both"),
        ({"finish": "abort"}, "finish must be one of stop, length, error"),
        ({"fail_after": 1, "die_after": 1}, "give one of fail_after, hang_after, die_after"),
        ({"fail_after": -1}, "fail_after must be a whole number, at least 0"),
        ({"hang_after": 1.5}, "hang_after must be a whole number"),
        ({"tokens_per_step": 0}, "tokens_per_step must be a whole number, at least 1"),
        ({"logprob": 0.5}, "logprob must be a number from -9999 to 0"),
        ({"queue_full": "yes"}, "queue_full must be true or false"),
    ],
)
def test_rules_that_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rules({"match": "a"} | entry)
    assert str(refused.value).startswith(f"s.yaml: rules[0]: {message}")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", None])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "s.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"engine\.script: cannot read .*s\.yaml"):
        load_script(file)


def test_no_script_and_an_empty_file_are_the_empty_script(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# nothing\n")
    assert load_script(None) == load_script(tmp_path / "s.yaml") == Script()


def test_the_first_rule_that_matches_answers() -> None:
    script = rules({"match": "^hello", "text": "a"}, {"match": "hel+o", "text": "b"})
    assert [script.rule_for(prompt).text for prompt in ("hello", "oh hello", "bye")] == ["a", "b", None]


def test_other_prompts_go_at_the_scripts_own_pace() -> None:
    script = parse_script({"delay_ms": 5, "rules": [{"match": "fast"}]}, "s.yaml")
    assert [script.rule_for(prompt).delay_ms for prompt in ("fast", "other")] == [0, 5]


@pytest.mark.parametrize(
    ("rule", "limits", "expected"),
    [
        ({}, {}, Replay((5, 6, EOS), "stop")),
        ({}, {"max_tokens": 2}, Replay((5, 6), "length")),
        ({}, {"stop_token_ids": frozenset({6})}, Replay((5, 6), "stop", 6)),
        ({}, {"ignore_eos": True, "max_tokens": 4}, Replay((5, 6, EOS, 5), "length")),
        ({}, {"min_tokens": 3, "max_tokens": 9}, Replay((5, 6, 5, 6, EOS), "stop")),
        ({"finish": "length"}, {}, Replay((5, 6), "length")),
        ({"finish": "error"}, {}, Replay((5, 6), "error")),
        ({"fail_after": 1}, {}, Replay((5,), "error")),
        ({"hang_after": 1}, {}, Replay((5,), fault="hang")),
        ({"die_after": 0}, {}, Replay((), fault="die")),
        ({"die_after": 9}, {}, Replay((5, 6, EOS), "stop")),
    ],
)
def test_how_answers_end(rule: dict[str, Any], limits: dict[str, Any], expected: Replay) -> None:
    wanted = Limits(**({"max_tokens": 10, "eos_token_id": EOS} | limits))
    assert replay([5, 6], Rule(match="", **rule), wanted) == expected


@given(
    answer=st.lists(st.integers(0, 5), max_size=6),
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 12),
    stops=st.frozensets(st.integers(0, 5)),
    ignore_eos=st.booleans(),
)
@settings(deadline=None)
def test_no_answer_breaks_its_limits(
    answer: list[int], max_tokens: int, min_tokens: int, stops: frozenset[int], ignore_eos: bool
) -> None:
    limits = Limits(max_tokens, EOS, min(min_tokens, max_tokens), ignore_eos, stops)
    played = replay(answer, Rule(match=""), limits)
    ends = stops if ignore_eos else stops | {EOS}
    assert limits.min_tokens <= len(played.tokens) <= max_tokens
    assert not ends & set(played.tokens[:-1])
    assert (played.finish == "stop") == (played.tokens[-1] in ends)
    assert played.finish == "stop" or len(played.tokens) == max_tokens
