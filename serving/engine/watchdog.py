"""Watches over the scheduling hook: what fails or is slow for long is switched off, for good, and loudly."""

import logging

log = logging.getLogger("burrstone.scheduler")
SLOW_HOOK_S = 0.002
# A step above the limit may be the machine's fault; so many in a row are ours.
SLOW_STEPS = 32


class Watchdog:
    """`fallen`: the hook is off, and vLLM schedules by itself for the rest of the engine's life."""

    def __init__(self, *, slow_hook_s: float = SLOW_HOOK_S, slow_steps: int = SLOW_STEPS) -> None:
        self.fallen = False
        self._slow_hook_s = slow_hook_s
        self._slow_steps = slow_steps
        self._slow_in_a_row = 0

    def observe(self, hook_s: float) -> bool:
        """A step's time in the hook; True when it has been slow for too long."""
        self._slow_in_a_row = self._slow_in_a_row + 1 if hook_s > self._slow_hook_s else 0
        return self._slow_in_a_row >= self._slow_steps

    def fall(self, reason: str, error: Exception | None = None) -> None:
        """Switch off. One line in the log, with the error's traceback if there is one."""
        if self.fallen:
            return
        self.fallen = True
        log.error(
            "scheduling policy switched off until the next start, the engine goes on in vLLM's own order: %s",
            reason,
            exc_info=error,
        )

    @property
    def slow(self) -> str:
        return f"the hook took over {self._slow_hook_s * 1e3:g} ms in {self._slow_steps} steps in a row"
