"""The table of requests that every policy reads: one row a request, the same layout in the engine and in the simulator."""

import numpy as np

NO_DEADLINE_S = np.inf
NEVER_S = -1.0

UNKNOWN_LENGTH = -1.0
NUM_LENGTH_BUCKETS = 36  # two an octave, up to 2**17.5 tokens

# phase
FREE, WAITING, RUNNING = 0, 1, 2

# Times are seconds on the engine's own clock. Lengths are tokens.
REQUEST = np.dtype(
    [
        ("seq", np.int64),  # order of arrival, unique in an engine's life
        ("phase", np.int64),  # FREE, WAITING or RUNNING
        ("arrival_s", np.float64),
        ("prompt_tokens", np.int64),
        ("max_tokens", np.int64),
        ("predicted_tokens", np.float64),  # output length as predicted at arrival; UNKNOWN_LENGTH: the policy fills it
        ("computed_tokens", np.int64),  # of prompt and output, whose KV is in the cache; 0 after a preemption
        ("output_tokens", np.int64),
        ("tenant", np.int64),  # row of the tenant table
        ("weight", np.float64),  # the tenant's share
        ("program", np.int64),  # agent program (a session's calls), -1 for none
        ("program_arrival_s", np.float64),  # when the program's first call came; arrival_s where there is no program
        ("priority", np.int64),  # lower first
        ("ttft_deadline_s", np.float64),  # first token due; NO_DEADLINE_S for none
        ("tpot_s", np.float64),  # seconds per output token after the first, on average; NO_DEADLINE_S for none
        ("deadline_s", np.float64),  # last token due; NO_DEADLINE_S for none
        ("first_token_s", np.float64),  # NEVER_S before there is one
        ("preemptions", np.int64),
    ]
)

# What fair policies remember of a tenant.
TENANT = np.dtype(
    [
        ("service", np.float64),  # weighted tokens served, per unit of weight
        ("weight", np.float64),
        ("active", np.int64),  # requests waiting or running
        ("waiting", np.int64),  # of these, requests that wait
        ("lengths", np.float64, (NUM_LENGTH_BUCKETS,)),  # of past outputs: a decaying histogram
        ("gaps", np.float64, (NUM_LENGTH_BUCKETS,)),  # between calls of its programs, in the same manner
        ("program_calls", np.float64),  # that have finished, decaying alike
    ]
)


def new_requests(capacity: int) -> np.ndarray:
    """An empty table: [capacity] of REQUEST."""
    return np.zeros(capacity, dtype=REQUEST)


def new_tenants(capacity: int) -> np.ndarray:
    """Tenants that were served nothing: [capacity] of TENANT."""
    tenants = np.zeros(capacity, dtype=TENANT)
    tenants["weight"] = 1.0
    return tenants
