"""Many engines behind a router. An engine's clock stands still until the router looks at it or gives it work."""

from typing import NamedTuple

import numpy as np

from burrstone.batching.core.kernel import kernel, large, lean_kernel
from burrstone.batching.core.rng import uniform_at
from burrstone.batching.policies.plan import prefilling
from burrstone.batching.routing.choose import choose, on_dispatch
from burrstone.batching.routing.dispatches import drop_seen
from burrstone.batching.routing.memory import RouterMemory
from burrstone.batching.routing.probes import NO_ENGINE, p2c_probes
from burrstone.batching.routing.spec import LEAST_LOAD, P2C, ROUND_ROBIN, SESSION
from burrstone.batching.sim.drive import fill, write_outcome
from burrstone.batching.sim.engine import add, cancel
from burrstone.batching.sim.fleet.histogram import bucket_of
from burrstone.batching.sim.macro import advance
from burrstone.batching.sim.world import NOWHERE, World, give_row, take_row

TTFT, TPOT, E2E = 0, 1, 2

CLOCK = np.dtype(
    [
        ("next_s", np.float64),  # when the next request comes; infinite when none does
        ("number", np.int64),  # of it, from 0
        ("rate", np.float64),  # requests a second, drawn from the offers at random; 0: the offers, one by one
        ("seed", np.uint64),
        ("looked_s", np.float64),  # when the router looked at all engines last
        ("view_period_s", np.float64),  # how often it looks; 0: whenever it decides
        ("homeless", np.int64),  # requests that wait for any engine at all
    ]
)

# What became of a tenant's requests.
TALLY = np.dtype(
    [
        ("offered", np.int64),
        ("finished", np.int64),
        ("good", np.int64),  # finished within all their SLOs
        ("input_tokens", np.int64),
        ("output_tokens", np.int64),
        ("moved", np.int64),  # lost their engine and began again on another
    ]
)


class Fleet(NamedTuple):
    """The router's side of a world: what comes, whom it knows, and what became of it."""

    clock: np.ndarray  # [1] of CLOCK
    offers: np.ndarray  # [requests] of OFFER, to draw from or in order of arrival
    views: np.ndarray  # [engines] of ENGINE_VIEW
    router: np.ndarray  # [1] of ROUTER
    memory: RouterMemory
    decision: np.ndarray  # [1] of DECISION
    no_hashes: np.ndarray  # uint64, empty
    homeless: np.ndarray  # [rows] int64
    tallies: np.ndarray  # [tenants] of TALLY
    histograms: np.ndarray  # [tenants, 3, NUM_BUCKETS] int64
    outcomes: np.ndarray  # [requests] of OUTCOME, or none


# What can be asked of `act`.
SERVE, SETTLE, LOSE, HOUSE = 0, 1, 2, 3


@kernel
def act(world: World, fleet: Fleet, what: int, e: int, at_s: float) -> int:
    """SERVE until at_s, SETTLE all engines, LOSE engine e, or HOUSE the homeless; returns how many requests engines
    hold after SETTLE, else 0. One door for Python, or all that is behind it would be compiled once for each."""
    if what == SERVE:
        serve_until(world, fleet, at_s)
    elif what == SETTLE:
        return settle_all(world, fleet, at_s)
    elif what == LOSE:
        lose(world, fleet, e, at_s)
    else:
        house_homeless(world, fleet, at_s)
    return 0


@kernel
def serve_until(world: World, fleet: Fleet, until_s: float) -> None:
    """Let come what comes before until_s."""
    clock = fleet.clock[0]
    while clock["next_s"] < until_s:
        offer = clock["number"]
        if clock["rate"] > 0.0:
            offer = int(uniform_at(clock["seed"], np.uint64(2 * clock["number"])) * fleet.offers.shape[0])
        arrive(world, fleet, offer, clock["next_s"])
        clock["number"] += 1
        if clock["rate"] > 0.0:
            drawn = uniform_at(clock["seed"], np.uint64(2 * clock["number"] + 1))
            clock["next_s"] -= np.log(1.0 - drawn) / clock["rate"]
        elif clock["number"] < fleet.offers.shape[0]:
            clock["next_s"] = fleet.offers[clock["number"]]["arrival_s"]
        else:
            clock["next_s"] = np.inf


@kernel
def arrive(world: World, fleet: Fleet, offer: int, now_s: float) -> None:
    """A request comes to the router."""
    given = fleet.offers[offer]
    fleet.tallies[given["tenant"]]["offered"] += 1
    row = take_row(world)
    if row == NOWHERE:
        raise RuntimeError("simulator: no row is left for a request; the fleet is far behind its load")
    fill(world, row, offer, given, now_s, now_s)
    dispatch(world, fleet, row, now_s)


@large
@kernel
def dispatch(world: World, fleet: Fleet, row: int, now_s: float) -> None:
    """Send a request to an engine, or keep it where none is alive."""
    given = fleet.offers[world.jobs[row]["offer"]]
    look_before(world, fleet, given["program"], now_s)
    e = choose(
        fleet.router[0],
        fleet.memory,
        fleet.views,
        given["input_tokens"],
        given["program"],
        fleet.no_hashes,
        world.engines[0]["block_size"],
        now_s,
        world.engines[0]["model"],
        world.engines[0]["max_num_batched_tokens"],
        fleet.decision[0],
    )
    if e == NO_ENGINE:
        fleet.homeless[fleet.clock[0]["homeless"]] = row
        fleet.clock[0]["homeless"] += 1
        return
    on_dispatch(fleet.memory, fleet.decision[0], given["input_tokens"], fleet.no_hashes, now_s)
    settle(world, fleet, e, now_s)
    engine = world.engines[e]
    if engine["num_waiting"] + engine["num_running"] == 0:
        engine["now_s"] = max(engine["now_s"], now_s)
    add(world, e, row)


@kernel
def look_before(world: World, fleet: Fleet, session: int, now_s: float) -> None:
    """Bring the views up to date that the router will decide by."""
    clock, router = fleet.clock[0], fleet.router[0]
    kind = router["policy"]
    if kind == ROUND_ROBIN or (kind == SESSION and session >= 0):
        return
    if clock["view_period_s"] > 0.0 or kind == LEAST_LOAD:
        if now_s - clock["looked_s"] >= clock["view_period_s"]:
            clock["looked_s"] = now_s
            for e in range(fleet.views.shape[0]):
                look(world, fleet, e, now_s)
        for e in range(fleet.views.shape[0]):
            fleet.views[e]["age_s"] = now_s - clock["looked_s"]
    elif kind in (P2C, SESSION):
        one, other = p2c_probes(router["seed"], np.uint64(fleet.memory.counters[0]["decisions"]), fleet.views)
        if one != NO_ENGINE:
            look(world, fleet, one, now_s)
            look(world, fleet, other, now_s)


@large
@lean_kernel
def look(world: World, fleet: Fleet, e: int, now_s: float) -> None:
    """What the engine would report now."""
    settle(world, fleet, e, now_s)
    engine = world.engines[e]
    view = fleet.views[e]
    tokens = 0
    prefills = 0
    if engine["num_prefills"] > 0:
        for place in range(engine["num_running"]):
            request = world.requests[world.queues[e, place]]
            if prefilling(request):
                prefills += 1
                tokens += request["prompt_tokens"] + request["output_tokens"] - request["computed_tokens"]
    for place in range(engine["head"], engine["head"] + engine["num_waiting"]):
        request = world.requests[world.queues[e, place]]
        tokens += request["prompt_tokens"] + request["output_tokens"]
    view["queued_prefill_tokens"] = tokens
    view["waiting"] = engine["num_waiting"]
    view["running"] = engine["num_running"] - prefills
    view["free_tokens"] = engine["free_blocks"] * engine["block_size"]
    view["age_s"] = 0.0
    drop_seen(fleet.memory.sent, e, now_s)


@large
@lean_kernel
def settle(world: World, fleet: Fleet, e: int, now_s: float) -> None:
    """Let an engine's time pass up to the first step boundary at or after now_s, and count who has ended."""
    engine = world.engines[e]
    ended = True
    while ended:
        advance(world, e, now_s, True)
        ended = engine["num_ended"] > 0
        for place in range(engine["num_ended"]):
            tally(world, fleet, world.queues[e, engine["max_num_seqs"] + place])
        engine["num_ended"] = 0


@lean_kernel
def settle_all(world: World, fleet: Fleet, now_s: float) -> int:
    """Let the time of all engines pass; returns how many requests they hold."""
    held = 0
    for e in range(world.engines.shape[0]):
        settle(world, fleet, e, now_s)
        held += world.engines[e]["num_waiting"] + world.engines[e]["num_running"]
    return held


@lean_kernel
def tally(world: World, fleet: Fleet, row: int) -> None:
    """The request has finished: count it and give its row back."""
    request, job = world.requests[row], world.jobs[row]
    given = fleet.offers[job["offer"]]
    counts = fleet.tallies[request["tenant"]]
    histogram = fleet.histograms[request["tenant"]]
    ttft_s = request["first_token_s"] - request["arrival_s"]
    e2e_s = job["ended_s"] - request["arrival_s"]
    good = ttft_s <= given["ttft_s"] and e2e_s <= given["e2e_s"]
    histogram[TTFT, bucket_of(ttft_s)] += 1
    histogram[E2E, bucket_of(e2e_s)] += 1
    if request["output_tokens"] > 1:
        tpot_s = (e2e_s - ttft_s) / (request["output_tokens"] - 1)
        histogram[TPOT, bucket_of(tpot_s)] += 1
        good = good and tpot_s <= given["tpot_s"]
    counts["finished"] += 1
    counts["good"] += int(good)
    counts["input_tokens"] += request["prompt_tokens"]
    counts["output_tokens"] += request["output_tokens"]
    if fleet.outcomes.shape[0] > 0:
        write_outcome(fleet.outcomes[job["offer"]], request, job)
    give_row(world, row)


@kernel
def lose(world: World, fleet: Fleet, e: int, now_s: float) -> None:
    """An engine is gone: whoever was on it begins again on another one. The caller has marked it as dead."""
    settle(world, fleet, e, now_s)
    engine = world.engines[e]
    while engine["num_waiting"] + engine["num_running"] > 0:
        row = world.queues[e, 0] if engine["num_running"] > 0 else world.queues[e, engine["head"]]
        cancel(world, e, row)
        begin_again(world, fleet, row, now_s)


@kernel
def begin_again(world: World, fleet: Fleet, row: int, now_s: float) -> None:
    """A request without an engine starts from its prompt; its latencies still count from its arrival."""
    offer = world.jobs[row]["offer"]
    arrival_s = world.requests[row]["arrival_s"]
    fill(world, row, offer, fleet.offers[offer], arrival_s, arrival_s)
    fleet.tallies[world.requests[row]["tenant"]]["moved"] += 1
    dispatch(world, fleet, row, now_s)


@kernel
def house_homeless(world: World, fleet: Fleet, now_s: float) -> None:
    """An engine has come up: whoever waits for one is sent."""
    waiting = fleet.clock[0]["homeless"]
    fleet.clock[0]["homeless"] = 0
    for place in range(waiting):
        dispatch(world, fleet, fleet.homeless[place], now_s)
