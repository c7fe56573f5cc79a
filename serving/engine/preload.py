"""Imported by the fork server: everything that an engine core and its worker on the CPU import.

Nothing imported here is garbage: not looking for any saves a fifth of the time, and pages that no collection touches
stay shared with the forked processes.
"""

import gc
import importlib

gc.disable()
for module in (
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
):
    importlib.import_module(module)
gc.freeze()
gc.enable()
