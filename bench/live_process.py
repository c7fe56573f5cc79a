"""`python -m burrstone.bench.live_process NUMBERS BLOCKS DECISIONS ROUNDS`: the process that holds the live targets' engine.

vLLM's CPU worker looks into every module that is loaded, and llvmlite's answer to that is an error. So nothing here may
load Numba, which our scheduler needs, before the engine stands.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

NEWS, ROWS = "burrstone-bench: ", "burrstone-rows: "


def _say(text: str) -> None:
    print(NEWS + text, flush=True)


def _main(arguments: Sequence[str]) -> None:
    from burrstone.bench.live_engine import LiveEngine
    from burrstone.serving.config import ServeConfig
    from burrstone.serving.engine.models import resolve_model

    numbers, num_blocks, decisions, rounds = (json.loads(f"[{argument}]") for argument in arguments)
    config = ServeConfig()
    model = resolve_model(config.model, config.cache_dir.expanduser())
    _say("starting the engine")
    engine = LiveEngine(model.path, num_blocks[0])

    from burrstone.bench import live_fidelity, live_gains, live_loads

    measures: dict[int, Callable[[], dict[str, Any]]] = {
        1: lambda: live_loads.same_code(engine, decisions[0], _say),
        2: lambda: live_fidelity.fidelity(engine, num_blocks[0], _say),
        5: lambda: live_gains.capacity(engine, _say),
        6: lambda: live_gains.flooded(engine, _say),
        8: lambda: live_gains.agents(engine, _say),
        10: lambda: live_loads.cost(engine, rounds[0], _say),
    }
    rows: dict[str, Any] = {}
    for number in numbers:
        rows |= measures[number]()
    print(ROWS + json.dumps(rows), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
