"""Importing vLLM's layers writes into the environment, which the servers of other tests inherit; and it warns."""

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

from burrstone.quant import vllm_compat

_before = dict(os.environ)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _name in vllm_compat.__all__:
        getattr(vllm_compat, _name)
os.environ.clear()
os.environ.update(_before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that runs are compared with: the number of threads is part of what decides the bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """vLLM's configuration, once made, preloads libraries into every later process of ours."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
