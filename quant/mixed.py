"""Mixed precision: units go back to how they were, those that lost most first, until the model is good enough.

Twice as many at each try (1, 2, 4, ...), so that few evaluations are needed; the result is near the least, not the least.
"""

import math
from typing import Any

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.evaluate import Evaluation
from burrstone.quant.progress import Bar
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.verdict import shown
from burrstone.quant.workspace import Workspace


def unrounded_file(index: int) -> str:
    """Holds a layer's smoothed weights before rounding. Not *.safetensors: readers should not take it for weights."""
    return f"unrounded-{index:05}.weights"


def most_looks(layers: list[dict[str, Any]]) -> int:
    """How often the text may be looked at: with nothing taken back, then 1, 2, 4, ... units, then all."""
    units = sum(len(layer["units"]) for layer in layers)
    return 2 + math.ceil(math.log2(max(1, units)))


def next_units(layers: list[dict[str, Any]], number: int) -> list[tuple[int, int]]:
    """(layer, unit) of the `number` rounded units that lost most, per mean square of what they make."""
    rounded = [
        (unit["loss"], index, position)
        for index, layer in enumerate(layers)
        for position, unit in enumerate(layer["units"])
        if not unit["kept"]
    ]
    return [(index, position) for _, index, position in sorted(rounded, reverse=True)[:number]]


def take_back(space: Workspace, model: StreamedModel, shard: str, index: int) -> None:
    """Make a layer's shard hold the unrounded weights of all units that state.json marks as kept; may be repeated."""
    unrounded = space.load_tensors(unrounded_file(index))
    tensors = space.load_tensors(shard)
    for unit in space.state["layers"][index]["units"]:
        for module in unit["modules"] if unit["kept"] else ():
            full, plain = f"{model.prefix(index)}{module}", unrounded.get(f"{module}.weight")
            if plain is None:
                continue
            bias = tensors.get(f"{full}.bias")
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{full}.")}
            tensors[f"{full}.weight"] = plain
            if bias is not None:
                tensors[f"{full}.bias"] = bias
    space.save_tensors(shard, tensors)


def verdict_of(evaluation: Evaluation, space: Workspace, bar: Bar, kept: int, looks: int) -> dict[str, Any]:
    """Evaluate the checkpoint as it stands in the work folder, and say how it did."""
    found = evaluation.compare(Checkpoint(space.folder), looks)
    ratio, mean_kl = shown(found["perplexity_ratio"], ".4f"), shown(found["mean_kl"], ".4f")
    bar.say(f"{kept} units kept: perplexity x{ratio}, mean KL {mean_kl}: {found['verdict']}")
    return found
