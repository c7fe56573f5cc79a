"""Target 3: the simulator against recorded runs of vLLM on GPUs (vllm_gpu_truth, LLMServingSim's example runs, MIT).

The step model is fitted to the first half of a run's requests alone; the second half is judged, with the whole run
simulated. TTFT counts from where the engine took the request in, as the recordings do. About three minutes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.ahead import simulate_ahead
from burrstone.batching.sim.fit.requests import RequestFit, Simulated, Timings, fit_to_requests
from burrstone.batching.sim.measures import QUANTILES, quantiles
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets.judge import Context, Row, at_most
from burrstone.batching.sim.traffic.workload_types import Workload

_FOLDER = "vllm_gpu_truth"
_SEEDS = (0, 1, 2)
_ROUNDS = 300
# A rough guess at an 8B model in bfloat16 on a large GPU, from where every search starts.
_START = StepModel(base_s=0.01, prefill_token_s=5e-5, decode_seq_s=5e-5, kv_token_s=1e-7, attention_pair_s=2e-10)


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run and how far the simulation of its second half may be off."""

    name: str
    file: str
    goal: float


RECORDINGS = (
    Recording("rtxpro6000", "RTXPRO6000_Llama-3.1-8B", 0.05),
    Recording("rtx4090", "RTX4090_Llama-3.1-8B", 0.12),
    Recording("moe-dp2", "RTXPRO6000_Qwen3-30B-A3B-Instruct-2507", 0.15),
)


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked, of which engines, and what came of it."""

    workload: Workload
    spec: EngineSpec
    num_engines: int
    recorded: Timings

    def simulated(self, model: StepModel) -> Simulated:
        """The whole run under this model."""
        result = simulate_ahead(replace(self.spec, step_model=model), self.workload, self.num_engines)
        tpot_s = (result.last_token_s - result.first_token_s) / (self.workload.output_tokens - 1)
        timings = Timings(result.first_token_s - result.queued_s, tpot_s)
        return Simulated(timings, result.ttft_parts, result.tpot_parts)


def run(context: Context) -> dict[str, Row]:
    """Relative errors of p50, p90 and p99 of TTFT and TPOT in the second half of each recording."""
    folder = context.trace(_FOLDER)
    rows: dict[str, Row] = {}
    for index, recording in enumerate(RECORDINGS):

        def progress(share: float, index: int = index, name: str = recording.name) -> None:
            context.progress((index + share) / len(RECORDINGS), f"fitting {name}")

        recorded = read_run(folder, recording.file)
        model = fit_first_half(recorded, progress).model
        rows |= {
            f"3-{recording.name}-{name}": at_most(abs(error), recording.goal)
            for name, error in second_half_errors(recorded, model).items()
        }
    return rows


def read_run(folder: Path, file: str) -> Run:
    """A recording of the folder. Where the KV blocks were not recorded they are taken to have been enough."""
    given = json.loads((folder / f"{file}.meta.json").read_text(encoding="utf-8"))
    lines = (folder / f"{file}.requests.jsonl").read_text(encoding="utf-8").splitlines()
    requests = sorted((json.loads(line) for line in lines), key=lambda request: request["arrival_time"])

    def column(name: str) -> np.ndarray:
        return np.array([request[name] for request in requests])

    engine, cache = given["engine_kwargs"], given.get("kv_cache")
    spec = EngineSpec(
        max_num_seqs=engine["max_num_seqs"],
        max_num_batched_tokens=engine["max_num_batched_tokens"],
        # One of vLLM's blocks holds nothing. Where there are enough, prompts that share nothing need no cache.
        num_blocks=cache["num_gpu_blocks"] - 1 if cache else 100_000,
        prefix_caching=bool(cache and cache["enable_prefix_caching"]),
    )
    arrival_s = column("arrival_time") - column("arrival_time").min()
    first, outputs = column("first_token_ts"), column("output_toks")
    recorded = Timings(first - column("queued_ts"), (column("last_token_ts") - first) / (outputs - 1))
    return Run(Workload(arrival_s, column("input_toks"), outputs), spec, engine["data_parallel_size"], recorded)


def fit_first_half(recorded: Run, progress: Callable[[float], None]) -> RequestFit:
    """The best of a few searches, by their error on the first half of the requests."""
    half = recorded.recorded.first(len(recorded.workload) // 2)
    fits = []
    for place, seed in enumerate(_SEEDS):

        def on_progress(share: float, place: int = place) -> None:
            progress((place + share) / len(_SEEDS))

        fits.append(
            fit_to_requests(recorded.simulated, half, _START, seed=seed, rounds=_ROUNDS, on_progress=on_progress)
        )
    return min(fits, key=lambda fit: fit.error)


def second_half_errors(recorded: Run, model: StepModel) -> dict[str, float]:
    """By name, such as ttft-p50: simulated over recorded, less one."""
    half = len(recorded.workload) // 2
    simulated = recorded.simulated(model).timings
    errors = {}
    pairs = {
        "ttft": (simulated.ttft_s, recorded.recorded.ttft_s),
        "tpot": (simulated.tpot_s, recorded.recorded.tpot_s),
    }
    for name, (ours_s, theirs_s) in pairs.items():
        ours = quantiles(ours_s[half:])
        theirs = quantiles(theirs_s[half:])
        for share, our, their in zip(QUANTILES, ours, theirs, strict=True):
            errors[f"{name}-p{100 * share:g}"] = our / their - 1
    return errors
