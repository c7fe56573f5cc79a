"""Has the engine changed since it was calibrated? Watched step by step, on the residual of the step model."""

import numpy as np

from burrstone.batching.core.step_log import StepLoad
from burrstone.batching.core.step_time import step_seconds
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.fit.steps import Calibration


class DriftDetector:
    """Two-sided CUSUM on how much longer or shorter than modelled steps take: says when to calibrate again.

    Fires on lasting changes of min_change, or of one sigma where steps scatter more than that; single outliers are
    clipped. After it has fired it starts afresh.
    """

    def __init__(self, calibration: Calibration, min_change: float = 0.05, threshold_sigmas: float = 15.0) -> None:
        if not min_change > 0 or not threshold_sigmas > 0:
            raise UsageError("drift detector: min_change and threshold_sigmas must be > 0")
        self._coefficients = calibration.model.coefficients()
        self._sigma = max(calibration.sigma, 1e-3)
        self._centre = float(np.median(calibration.ratios))
        self._slack = max(0.5, min_change / (2 * self._sigma))
        # Above the slack whatever sigma is: on a very even engine even a clipped step must count.
        self._most = self._slack + 3.5
        self._threshold = threshold_sigmas
        self.slower = self.faster = 0.0

    def observe(self, load: StepLoad, elapsed_s: float) -> bool:
        """One timed step; True when the engine has changed."""
        modelled_s = step_seconds(
            self._coefficients, load.prefill_tokens, load.decode_seqs, load.kv_tokens, load.attention_pairs
        )
        off = (elapsed_s / max(modelled_s, 1e-9) - self._centre) / self._sigma
        sigmas = float(np.clip(off, -self._most, self._most))
        self.slower = max(0.0, self.slower + sigmas - self._slack)
        self.faster = max(0.0, self.faster - sigmas - self._slack)
        if max(self.slower, self.faster) < self._threshold:
            return False
        self.slower = self.faster = 0.0
        return True
