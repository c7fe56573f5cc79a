"""Importing vLLM writes into the environment, which the servers of other tests inherit; and it warns."""

import os
import warnings

_before = dict(os.environ)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import burrstone.serving.engine.vllm_compat
os.environ.clear()
os.environ.update(_before)

__all__ = ["burrstone"]
