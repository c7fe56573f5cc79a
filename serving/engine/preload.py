"""Imported by the fork server: everything that an engine core and its worker on the CPU import."""

import vllm.model_executor.models.llama
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker

__all__ = ["vllm"]
