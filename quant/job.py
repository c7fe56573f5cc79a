"""From a model to an INT8 checkpoint, one decoder layer at a time.

In memory at once: the model's embedding and head, one layer in float32, the Hessians of that layer where GPTQ rounds, and
the hidden states of the calibration tokens (rows x length x hidden size x 4 bytes).
"""

import fnmatch
import importlib.metadata
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burrstone.quant.card import loss_table, model_card, record_quality
from burrstone.quant.checkpoint import INDEX_FILE, Checkpoint, tensor_bytes
from burrstone.quant.errors import QuantizeError
from burrstone.quant.evaluate import Evaluation
from burrstone.quant.formats import HEAD, OUR_KEY, Format, format_of
from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD
from burrstone.quant.layer_job import check_finite, quantize_layer
from burrstone.quant.mixed import most_looks, next_units, take_back, unrounded_file, verdict_of
from burrstone.quant.progress import Bar
from burrstone.quant.quality import weights_digest
from burrstone.quant.recipe import Recipe
from burrstone.quant.rounding import quantize
from burrstone.quant.streamed import Batch, StreamedModel
from burrstone.quant.texts import Tokens, refuse_calibrated
from burrstone.quant.workspace import Workspace

_WRITTEN = ("config.json", INDEX_FILE, "quantization.json", "README.md")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run made. Bytes are of weights; seconds and peak memory of this process, not of killed ones before it."""

    out: str
    schemes: str
    method: str
    num_layers: int
    resumed_layers: int
    bytes_before: int
    bytes_after: int
    kept: list[str]
    worst: list[dict[str, Any]]
    verdict: str | None  # of mixed precision
    weights_digest: str
    peak_memory_bytes: int
    elapsed_s: float


@dataclass(slots=True)
class Job:
    """One model, one recipe, one output. `tokens` is None for a recipe that needs none. Raises QuantizeError's kinds."""

    source: Checkpoint
    out: Path
    recipe: Recipe
    tokens: Tokens | None
    bar: Bar
    device: str = "cpu"
    restart: bool = False
    # Units are taken back until this passes; None leaves all rounded.
    until: Evaluation | None = None

    def run(self) -> Result:
        started_s = time.monotonic()
        _refuse_quantized(self.source)
        if self.recipe.needs_data and self.tokens is None:
            raise QuantizeError(f"method {self.recipe.method} needs calibration data; give --calibration")
        if self.until is not None and self.recipe.scheme is None:
            raise QuantizeError(f"{self.recipe.schemes} rounds no weights that mixed precision could take back")
        if self.until is not None and (calibrated := self._calibration_facts()) is not None:
            refuse_calibrated(self.until.text, calibrated)
        model = StreamedModel(self.source, self.device)
        _refuse_idle_patterns(model, self.recipe)
        self.bar.say("reading the source's weights")
        run = self._run_facts()
        space = Workspace(self.out, run, restart=self.restart)
        try:
            resumed = space.layers_done
            if self.recipe.scheme is not None:
                self._layers(model, space)
            self._frame(model, space)
            self._write_rest(model, space, run)
            if self.until is not None and "quality" not in space.state:
                self._take_back_until(model, space, run, self.until)
            space.sweep(self._wanted(model))
            if "quality" in space.state:
                record_quality(space.folder, space.state["quality"])
            space.finish()
        finally:
            space.close()
        return self._result(model, resumed, space.state, time.monotonic() - started_s)

    def _run_facts(self) -> dict[str, Any]:
        """Everything that decides a byte of the output."""
        return {
            "source_digest": weights_digest(self.source.folder) if self.until is None else self.until.reference_digest,
            "recipe": json.loads(json.dumps(self.recipe.as_json())),
            "calibration": self._calibration_facts(),
            "until": None if self.until is None else self.until.facts(),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in ("burrstone", "torch", "transformers")},
        }

    def _calibration_facts(self) -> dict[str, Any] | None:
        if self.tokens is None:
            return None
        return self.tokens.facts() | {"rows": self.tokens.row_digests()}

    def _layers(self, model: StreamedModel, space: Workspace) -> None:
        batches = self._batches(model)
        first = space.layers_done
        if first:
            self.bar.say(f"going on after layer {first} of {model.num_layers}")
        # A step is a batch through a layer; without data, a layer.
        self.bar.start(model.num_layers * max(1, 2 * len(batches)), "quantizing", first * max(1, 2 * len(batches)))
        if 0 < first < model.num_layers and batches:
            for number, hidden in space.load_tensors(_hidden_file(first)).items():
                batches[int(number)].hidden = hidden.to(self.device)
        for index in range(first, model.num_layers):
            with model.layer(index) as layer:
                result = quantize_layer(model, layer, index, batches, self.recipe, self.bar.step)
                last = index + 1 == model.num_layers
                for batch in batches:
                    if not last:
                        batch.hidden = model.apply(layer, index, batch)
                    self.bar.step()
            names = {f"{model.prefix(index)}{name}": tensor for name, tensor in result.tensors.items()}
            space.save_tensors(_shard(index, model.num_layers), names)
            if self.until is not None:
                space.save_tensors(unrounded_file(index), result.unrounded)
            if batches and not last:
                space.save_tensors(
                    _hidden_file(index + 1), {str(i): batch.hidden.cpu() for i, batch in enumerate(batches)}
                )
            space.state["layers"].append(result.report())
            space.save_state()
            space.remove(_hidden_file(index))
            if not batches:
                self.bar.step()

    def _batches(self, model: StreamedModel) -> list[Batch]:
        if not self.recipe.needs_data or self.tokens is None:
            return []
        return model.embed_all(self.tokens.rows)

    def _frame(self, model: StreamedModel, space: Workspace) -> None:
        """Embedding, last norm and head; with a KV-only recipe, every tensor."""
        scheme = self.recipe.scheme
        if scheme is None:
            for index in range(model.num_layers):
                layer = self.source.tensors(prefix := model.prefix(index))
                space.save_tensors(_shard(index, model.num_layers), {f"{prefix}{name}": t for name, t in layer.items()})
        frame = {name: self.source.tensor(name) for name in model.frame_names()}
        if self.recipe.quantize_lm_head and scheme is not None:
            weight: Tensor = model.model.get_output_embeddings().weight
            check_finite(weight, f"{HEAD}.weight")
            frame.pop(f"{HEAD}.weight", None)
            scale = self.recipe.scale_of(weight)
            parts = scheme.encode(quantize(weight, scale).cpu(), scale.cpu())
            frame |= {f"{HEAD}.{suffix}": tensor for suffix, tensor in parts.items()}
        space.save_tensors(_shard(model.num_layers, model.num_layers), frame)

    def _take_back_until(
        self, model: StreamedModel, space: Workspace, run: dict[str, Any], evaluation: Evaluation
    ) -> None:
        """Leaves the last evaluation in the state, as `quality`; until then, a killed run starts here again."""
        layers = space.state["layers"]
        looks = most_looks(layers)
        while True:
            taken = space.state.setdefault("taken", 0)
            for index, layer in enumerate(layers):
                if any(unit["kept"] for unit in layer["units"]):
                    take_back(space, model, _shard(index, model.num_layers), index)
            self._write_rest(model, space, run)
            quality = verdict_of(evaluation, space, self.bar, taken, looks)
            chosen = next_units(layers, max(1, taken))
            if quality["verdict"] == "pass" or not chosen:
                break
            for index, position in chosen:
                layers[index]["units"][position]["kept"] = True
            space.state["taken"] = taken + len(chosen)
            space.save_state()
        space.state["quality"] = quality
        space.save_state()

    def _wanted(self, model: StreamedModel) -> set[str]:
        """The names of the checkpoint's files."""
        shards = {_shard(index, model.num_layers) for index in range(model.num_layers + 1)}
        return {*shards, *_WRITTEN, *(file.name for file in self.source.companions())}

    def _write_rest(self, model: StreamedModel, space: Workspace, run: dict[str, Any]) -> None:
        weight_map: dict[str, str] = {}
        total = 0
        for index in range(model.num_layers + 1):
            shard = _shard(index, model.num_layers)
            sizes = tensor_bytes(space.folder / shard)
            weight_map |= dict.fromkeys(sizes, shard)
            total += sum(sizes.values())
        space.save_json(INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
        kept = kept_modules(space.state["layers"], model)
        space.copy(self.source.companions())
        space.save_json("config.json", self._config(kept))
        space.save_json("quantization.json", {**run, "source": self.source.name, "layers": space.state["layers"]})
        losses = loss_table(worst_units(space.state["layers"], model)[:10])
        space.save_text("README.md", model_card(self.source, self.recipe, self.tokens, run, losses, kept))

    def _config(self, kept: list[str]) -> dict[str, Any]:
        config = dict(self.source.config)
        scheme = self.recipe.scheme
        left_alone = kept if self.recipe.quantize_lm_head else [HEAD, *kept]
        if scheme is not None:
            config |= scheme.announce(left_alone, self.recipe.granularity)
        if self.recipe.quantize_lm_head:
            # The embedding stays as it is, so that the two are tied no longer.
            config["tie_word_embeddings"] = False
        ours = {"schemes": self.recipe.schemes} | dict(config.get(OUR_KEY, {}))
        if self.recipe.kv_int8:
            ours["kv_cache_dtype"] = INT8_PER_TOKEN_HEAD
        return config | {OUR_KEY: ours}

    def _result(self, model: StreamedModel, resumed: int, state: dict[str, Any], elapsed_s: float) -> Result:
        made, layers = Checkpoint(self.out), state["layers"]
        return Result(
            out=str(self.out),
            schemes=self.recipe.schemes,
            method=self.recipe.method,
            num_layers=model.num_layers,
            resumed_layers=resumed,
            bytes_before=self.source.num_bytes(),
            bytes_after=made.num_bytes(),
            kept=kept_modules(layers, model),
            worst=worst_units(layers, model)[:5],
            verdict=state["quality"]["verdict"] if "quality" in state else None,
            weights_digest=weights_digest(self.out),
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            elapsed_s=round(elapsed_s, 1),
        )


def _refuse_idle_patterns(model: StreamedModel, recipe: Recipe) -> None:
    names = [f"{model.prefix(index)}{name}" for index in range(model.num_layers) for name in model.layer_modules(index)]
    for pattern in recipe.keep:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise QuantizeError(f"--keep {pattern} matches no linear module; they are called such as {names[0]}")


def kept_modules(layers: list[dict[str, Any]], model: StreamedModel) -> list[str]:
    """Full names of the linear modules that stayed as they were."""
    return [
        f"{model.prefix(index)}{name}"
        for index, layer in enumerate(layers)
        for unit in layer["units"]
        if unit["kept"]
        for name in unit["modules"]
    ]


def worst_units(layers: list[dict[str, Any]], model: StreamedModel) -> list[dict[str, Any]]:
    """The rounded units, the one that lost most first."""
    rounded = [
        {"unit": f"{model.prefix(index)}{unit['modules'][0]}", "layer": index, "loss": unit["loss"]}
        for index, layer in enumerate(layers)
        for unit in layer["units"]
        if not unit["kept"]
    ]
    return sorted(rounded, key=lambda row: -row["loss"])


def _refuse_quantized(source: Checkpoint) -> None:
    if format_of(source.config, source.folder) != Format(None, False):
        raise QuantizeError(f"{source.folder} is quantized already; quantize the original")


def _shard(index: int, num_layers: int) -> str:
    return f"model-{index + 1:05}-of-{num_layers + 1:05}.safetensors"


def _hidden_file(layers_done: int) -> str:
    # Not *.safetensors: no reader of checkpoints should take it for weights.
    return f"hidden-{layers_done:05}.activations"
