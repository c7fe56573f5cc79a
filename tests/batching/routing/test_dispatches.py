"""What a router has sent and not yet seen, against a plain list."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.routing.dispatches import drop_seen, new_dispatches, note_dispatch

RING = 4
STEPS = st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 500)), max_size=40)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_the_sums_are_those_of_what_was_sent_since_the_report(steps: list[tuple[int, bool, int]]) -> None:
    sent = new_dispatches(2, RING)
    unseen: list[list[tuple[float, int]]] = [[], []]
    for number, (engine, report, tokens) in enumerate(steps):
        now_s = float(number)
        if report:
            seen_s = now_s - tokens % 3
            drop_seen(sent, engine, seen_s)
            unseen[engine] = [entry for entry in unseen[engine] if entry[0] > seen_s]
        else:
            note_dispatch(sent, engine, now_s, tokens, 2.0 * tokens)
            unseen[engine] = [*unseen[engine], (now_s, tokens)][-RING:]
        expected = np.array([sum(tokens for _, tokens in entries) for entries in unseen])
        assert sent.unseen_tokens.tolist() == expected.tolist()
        assert sent.unseen_pairs.tolist() == (2.0 * expected).tolist()
