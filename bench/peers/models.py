"""One model in the forms that the peers read: a folder of safetensors, an INT8 checkpoint of it, a Q8_0 GGUF file.

The last two are made when they are first asked for. How a checkpoint was rounded does not change its speed, so it is made
by the quickest method.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from burrstone.batching.errors import UsageError
from burrstone.serving.config import EMBEDDED_MODEL, ServeConfig
from burrstone.serving.engine.models import embedded_gguf, resolve_model


@dataclass
class Models:
    """name: folder or hub id. workspace: where copies are made. gguf: llama.cpp's file, where the model has one of its own."""

    name: str
    workspace: Path
    say: Callable[[str], None]
    gguf: Path | None = None
    quantize_lm_head: bool = True

    @cached_property
    def folder(self) -> str:
        return resolve_model(self.name, ServeConfig().cache_dir.expanduser(), self.say).path

    @cached_property
    def int8(self) -> str:
        # Loaded only here: the quantizer brings torch and transformers along.
        from burrstone.quant.checkpoint import Checkpoint, find_checkpoint
        from burrstone.quant.job import Job
        from burrstone.quant.progress import SilentBar
        from burrstone.quant.recipe import Recipe

        source, recipe = find_checkpoint(self.folder), Recipe(method="rtn", quantize_lm_head=self.quantize_lm_head)
        # Kept: vLLM compiles once for each folder, which takes longer than all else.
        out = ServeConfig().cache_dir.expanduser() / "bench" / f"int8-{_fingerprint(source, str(recipe))}"
        if not out.is_dir():
            self.say("making the INT8 checkpoint")
            Job(Checkpoint(source), out, recipe, None, SilentBar()).run()
        return str(out)

    @cached_property
    def q8_gguf(self) -> str:
        """Raises UsageError where there is nothing to make it from."""
        if self.gguf is not None:
            return str(self.gguf)
        if self.name != EMBEDDED_MODEL:
            raise UsageError(f"llama.cpp needs {self.name} as a GGUF file: give --gguf FILE, or leave llama.cpp out")
        from burrstone.bench.peers.gguf_q8 import write_q8

        self.say("making the Q8_0 GGUF file")
        out = self.workspace / "model-q8_0.gguf"
        write_q8(embedded_gguf(), out)
        return str(out)


def _fingerprint(folder: Path, recipe: str) -> str:
    """Of the files as they are now, without reading them."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return hashlib.sha256(repr((str(folder), files, recipe)).encode()).hexdigest()[:16]
