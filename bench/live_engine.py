"""A real vLLM engine in this process, whose scheduler can be exchanged between two loads: the model, its KV cache and the
machine's mood stay the same, and only who schedules differs. Its environment is the replica's, set before the process
starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import vllm

from burrstone.batching.request import METADATA_KEY
from burrstone.serving.engine import vllm_core_compat
from burrstone.serving.engine.vllm_compat import RequestOutputKind

if TYPE_CHECKING:
    from burrstone.serving.engine.scheduling.options import SchedulerOptions

BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Below those that the engine was started with; num_blocks None for all blocks that it has."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int | None = None


ENGINE = Limits(max_num_seqs=32, max_num_batched_tokens=512)


class LiveEngine:
    """Not thread-safe: whoever calls `step` runs the engine."""

    def __init__(self, model: str, num_blocks: int) -> None:
        self._llm = vllm.LLM(
            model=model,
            max_model_len=2048,
            max_num_seqs=ENGINE.max_num_seqs,
            max_num_batched_tokens=ENGINE.max_num_batched_tokens,
            num_gpu_blocks_override=num_blocks,
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=2**30,
            disable_log_stats=False,
            seed=0,
        )
        self._engine: Any = self._llm.llm_engine
        self._core: Any = self._engine.engine_core.engine_core
        self._stock: Any = self._core.scheduler
        self.scheduler: Any = self._stock

    def use(self, options: "SchedulerOptions | None", limits: Limits | None = None) -> None:
        """Another scheduler from now on: ours with these options, or vLLM's. Nothing may be running."""
        # Not before the engine stands: see live_process.
        from burrstone.serving.engine.scheduling.scheduler import BurrstoneScheduler

        if self._engine.has_unfinished_requests():
            raise RuntimeError("the scheduler is exchanged while requests run")
        self.scheduler.reset_prefix_cache()
        cls = vllm_core_compat.Scheduler if options is None else BurrstoneScheduler
        self.scheduler = self._core.scheduler = cls(
            vllm_config=self._stock.vllm_config,
            kv_cache_config=replace(
                self._stock.kv_cache_config,
                num_blocks=(limits and limits.num_blocks) or self._stock.kv_cache_config.num_blocks,
            ),
            structured_output_manager=self._core.structured_output_manager,
            block_size=self._stock.block_size,
            hash_block_size=self._stock.hash_block_size,
            log_stats=True,
        )
        if limits is not None:
            self.scheduler.max_num_active_reqs = limits.max_num_seqs
            self.scheduler.max_num_scheduled_tokens = limits.max_num_batched_tokens
        if options is not None:
            self.scheduler.start_policy(options)

    def add(self, name: str, prompt: Sequence[int], max_tokens: int, meta: dict[str, Any] | None = None) -> None:
        """A request of so many tokens; `meta` as the seam writes it."""
        params = vllm.SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.DELTA,
            extra_args={METADATA_KEY: meta or {}},
        )  # fmt: skip
        self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)

    def abort(self, names: Sequence[str]) -> None:
        self._engine.abort_request(list(names))

    def step(self) -> list[str]:
        """Run a step; returns who finished by it."""
        return [name for name, _, finished in self.advance() if finished]

    def advance(self) -> list[tuple[str, list[int], bool]]:
        """Run a step; returns (name, its new tokens, whether it finished) of everybody who got something."""
        return [
            (output.request_id, list(output.outputs[0].token_ids), bool(output.finished))
            for output in self._engine.step()
        ]

    @property
    def num_unfinished(self) -> int:
        return int(self._engine.get_num_unfinished_requests())
