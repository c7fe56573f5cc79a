"""Watches over the scheduling hook: what fails or is slow for long is switched off, for good, and loudly."""

import logging
from collections import deque

log = logging.getLogger("burrstone.scheduler")
SLOW_HOOK_S = 0.002
# A step above the limit may be the machine's fault; so many among twice as many are ours.
SLOW_STEPS = 32
# So long a pause of all requests is not to come again.
STUCK_HOOK_S = 0.25
# What was not compiled before the first request is compiled in the first steps.
_WARMUP_STEPS = 64


class Watchdog:
    """`fallen`: the hook is off, and vLLM schedules by itself for the rest of the engine's life.

    `verdict`: what `observe` has found, in words.
    """

    def __init__(self, *, slow_hook_s: float = SLOW_HOOK_S, slow_steps: int = SLOW_STEPS) -> None:
        self.fallen = False
        self._slow_hook_s = slow_hook_s
        self._slow_steps = slow_steps
        self._stuck_hook_s = max(STUCK_HOOK_S, slow_hook_s)
        self._steps = 0
        self._slow: deque[bool] = deque(maxlen=2 * slow_steps)
        self.verdict = ""

    def observe(self, hook_s: float) -> bool:
        """A step's time in the hook; True when it was slow too often, or once for much too long: `verdict` says which."""
        self._steps += 1
        self._slow.append(hook_s > self._slow_hook_s)
        if hook_s > self._stuck_hook_s and self._steps > _WARMUP_STEPS:
            self.verdict = f"the hook took {hook_s * 1e3:.0f} ms, over {self._stuck_hook_s * 1e3:g} ms, in one step"
        elif self._slow[-1] and sum(self._slow) >= self._slow_steps:
            self.verdict = (
                f"the hook took over {self._slow_hook_s * 1e3:g} ms in {self._slow_steps} of the last "
                f"{2 * self._slow_steps} steps"
            )
        return bool(self.verdict)

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
