"""`python -m burrstone.bench.peers.ray_serve_llm FOLDER PORT`: ray.serve.llm's OpenAI app, as its documentation starts it."""

import signal
import sys
import threading

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from burrstone.bench.peers.table import (
    KV_GIB,
    MAX_MODEL_LEN,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    MODEL,
    engine_block_tokens,
)


def _main(folder: str, port: int) -> None:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=8)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": folder},
        accelerator_config={"kind": "cpu"},
        engine_kwargs={
            "dtype": "bfloat16",
            "max_model_len": MAX_MODEL_LEN,
            "kv_cache_memory_bytes": int(KV_GIB * 2**30),
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "seed": 0,
            "enable_prompt_tokens_details": True,
        }
        | ({} if (tokens := engine_block_tokens(folder)) is None else {"block_size": tokens}),
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    # After Ray, which puts handlers of its own in place.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
