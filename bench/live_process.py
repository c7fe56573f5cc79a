"""`python -m burrstone.bench.live_process NUMBERS DECISIONS ROUNDS`: the process that holds the live targets' engine.

vLLM's CPU worker looks into every module that is loaded, and llvmlite's answer to that is an error. So nothing here may
load Numba, which our scheduler needs, before the engine stands.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

NEWS, ROWS = "burrstone-bench: ", "burrstone-rows: "


def _say(text: str) -> None:
    print(NEWS + text, flush=True)


def _main(arguments: Sequence[str]) -> None:
    from burrstone.bench.live_engine import LiveEngine
    from burrstone.serving.config import ServeConfig
    from burrstone.serving.engine.models import resolve_model

    numbers, decisions, rounds = arguments
    config = ServeConfig()
    model = resolve_model(config.model, config.cache_dir.expanduser())
    _say("starting the engine")
    engine = LiveEngine(model.path)

    from burrstone.bench import live_loads

    rows: dict[str, Any] = {}
    if "1" in numbers.split(","):
        rows |= live_loads.same_code(engine, int(decisions), _say)
    if "10" in numbers.split(","):
        rows |= live_loads.cost(engine, int(rounds), _say)
    print(ROWS + json.dumps(rows), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
