"""The model in the forms that peers read."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from burrstone.batching.errors import UsageError
from burrstone.bench.peers.models import Models
from burrstone.serving.config import EMBEDDED_MODEL
from burrstone.serving.engine.models import embedded_gguf


def test_llama_cpps_copy_is_the_same_model_in_eight_bits(tmp_path: Path) -> None:
    source = GGUFReader(embedded_gguf())
    copy = GGUFReader(Models(EMBEDDED_MODEL, tmp_path, lambda _: None).q8_gguf)
    assert {tensor.tensor_type.name for tensor in copy.tensors} == {"Q8_0", "F32"}
    assert {
        name: field.contents() for name, field in source.fields.items() if name.startswith(("llama.", "tokenizer."))
    } == {name: field.contents() for name, field in copy.fields.items() if name.startswith(("llama.", "tokenizer."))}
    for theirs, ours in list(zip(source.tensors, copy.tensors, strict=True))[:5]:
        assert theirs.name == ours.name
        there, here = (dequantize(tensor.data, tensor.tensor_type) for tensor in (theirs, ours))
        # Q8_0: a scale of half precision for 32 values, 127 steps each way.
        assert np.abs(there - here).max() <= np.abs(there).max() / 127


def test_a_file_that_is_given_is_taken(tmp_path: Path) -> None:
    assert Models("owner/name", tmp_path, lambda _: None, tmp_path / "own.gguf").q8_gguf == str(tmp_path / "own.gguf")
    with pytest.raises(UsageError, match="give --gguf FILE"):
        _ = Models("owner/name", tmp_path, lambda _: None).q8_gguf
