"""Prompt tokens that are in the engine and have not been prefilled yet, as far as that can be told from outside."""

from collections.abc import Mapping
from typing import Any


class PrefillBacklog:
    """Requests in the order they went in, until their first token is seen or, for whole answers, must have come."""

    def __init__(self) -> None:
        self._pending: dict[int, tuple[int, bool]] = {}  # seq -> prompt tokens, whether its first token stays unseen
        self._since_s = 0.0  # when the engine turned to the first of them

    def tokens(self, token_s: float, now_s: float) -> float:
        """What is left of it, where prefilling takes `token_s` a token."""
        total = float(sum(tokens for tokens, _ in self._pending.values()))
        if token_s <= 0.0:
            return total
        since_s = self._since_s
        for tokens, unseen in self._pending.values():
            done = min(float(tokens), max(0.0, now_s - since_s) / token_s)
            total -= done
            if done < tokens or not unseen:
                break
            since_s += tokens * token_s
        return total

    def add(self, seq: int, prompt_tokens: int, token_s: float, now_s: float, *, unseen: bool) -> None:
        """It goes into the engine."""
        self._forget_unseen(token_s, now_s)
        if not self._pending:
            self._since_s = now_s
        self._pending[seq] = (prompt_tokens, unseen)

    def remove(self, seq: int, now_s: float) -> None:
        """Its first token came, or it has left."""
        if next(iter(self._pending), None) == seq:
            self._since_s = now_s
        self._pending.pop(seq, None)

    def _forget_unseen(self, token_s: float, now_s: float) -> None:
        while self._pending:
            seq, (tokens, unseen) = next(iter(self._pending.items()))
            if not unseen or now_s - self._since_s < tokens * token_s:
                return
            del self._pending[seq]
            self._since_s += tokens * token_s

    def save(self, now_s: float) -> dict[str, Any]:
        pending = [[seq, tokens, unseen] for seq, (tokens, unseen) in self._pending.items()]
        return {"pending": pending, "since": now_s - self._since_s}

    def load(self, saved: Mapping[str, Any], now_s: float) -> None:
        self._pending = {seq: (tokens, unseen) for seq, tokens, unseen in saved["pending"]}
        self._since_s = now_s - saved["since"]
