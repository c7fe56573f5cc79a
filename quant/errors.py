"""The quantizer's errors. All are for the person at the command line: what is wrong, which rule, what to do.

QuantizeError
├── UnsupportedModel    an architecture or a format that is not quantized here
├── BadCheckpoint       missing, truncated or contradictory files
├── BadData             calibration or evaluation data that cannot be used
├── Interfered          the output or its work folder belongs to another run
└── OutOfSpace          the disk is full; what was done is kept and continued
"""


class QuantizeError(ValueError):
    """A model, its data or a request that cannot be carried out; the message names the rule and the fix."""


class UnsupportedModel(QuantizeError):
    pass


class BadCheckpoint(QuantizeError):
    pass


class BadData(QuantizeError):
    pass


class Interfered(QuantizeError):
    pass


class OutOfSpace(QuantizeError):
    pass
