"""A causal language model of which one decoder layer is in memory at a time.

The model's own transformers code runs, with its decoder layers taken out: once to embed the tokens and to see what each
layer is called with (masks, positions), and once to turn the last layer's output into logits. In between, the layers
are loaded and applied one by one. Computes in float32, so that what is measured is the rounding of weights, not bfloat16.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from burrstone.quant.checkpoint import Checkpoint, refuse_unsupported
from burrstone.quant.errors import BadCheckpoint, BadData, UnsupportedModel
from burrstone.quant.formats import Format, format_of

_ROWS_A_BATCH = 8
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Call:
    """How one layer is called for tokens of one shape: everything but the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


class _Absent(nn.Module):
    """Stands where a decoder layer was: notes how it is called, and hands on what it is given, or `output`."""

    def __init__(self) -> None:
        super().__init__()
        self.call: Call | None = None
        self.output: Tensor | None = None

    def forward(self, hidden: Tensor, *positional: Any, **named: Any) -> Tensor:
        self.call = Call(positional, named)
        return hidden if self.output is None else self.output


@dataclass(slots=True)
class Batch:
    """Token rows of one shape on their way through the layers. tokens: [rows, length]; hidden: the same and [hidden]."""

    tokens: Tensor
    hidden: Tensor
    calls: list[Call] = field(repr=False)


class StreamedModel:
    """Raises BadCheckpoint and UnsupportedModel, at construction where it can be known then."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        refuse_unsupported(checkpoint.config, checkpoint.folder)
        self.checkpoint = checkpoint
        self.device = device
        self.format: Format = format_of(checkpoint.config, checkpoint.folder)
        self.model = _skeleton(checkpoint)
        self._decoder = _decoder_of(self.model, checkpoint)
        self._layers = list(self._decoder.layers)
        self.layer_prefix = _prefix_of(self.model, self._decoder.layers)
        self._refuse_further_layers()
        self._absent = [_Absent() for _ in self._layers]
        self._decoder.layers = nn.ModuleList(self._absent)
        self._load_frame()

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def prefix(self, index: int) -> str:
        """What the names of a layer's tensors start with."""
        return f"{self.layer_prefix}.{index}."

    def frame_names(self) -> list[str]:
        """The tensors outside the decoder layers."""
        return [name for name in self.checkpoint.names if not name.startswith(f"{self.layer_prefix}.")]

    def layer_modules(self, index: int) -> dict[str, nn.Linear]:
        """A layer's linear modules by name, without weights."""
        return {name: module for name, module in self._layers[index].named_modules() if isinstance(module, nn.Linear)}

    @contextlib.contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights in float32; they are given back afterwards."""
        empty = self._layers[index]
        tensors = self.format.decode(self.checkpoint.tensors(self.prefix(index)))
        replaced: dict[str, nn.Module] = {}
        try:
            for name, linear in tensors.linears.items():
                replaced[name] = _fitting(empty, name, linear, f"{self.checkpoint.folder}, layer {index}")
                replace_module(empty, name, linear)
            plain = {name: tensor.to(self.device, torch.float32) for name, tensor in tensors.plain.items()}
            where = f"{self.checkpoint.folder}, layer {index}"
            _assign(empty, plain, where)
            _check_complete(empty, where)
            yield empty.to(self.device)
        finally:
            for name, module in replaced.items():
                replace_module(empty, name, module)
            _give_back(empty)

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Batch:
        """tokens: [rows, length] int64. Raises BadData for tokens that the model does not have."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        if tokens.numel() and int(tokens.max()) >= vocabulary:
            raise BadData(
                f"{self.checkpoint.folder}: token {int(tokens.max())} of its tokenizer is beyond its {vocabulary} embeddings"
            )
        for absent in self._absent:
            absent.call = absent.output = None
        embedded = _first_input(self._decoder, self._absent[0], tokens.to(self.device))
        calls = [absent.call for absent in self._absent if absent.call is not None]
        if len(calls) != self.num_layers:
            raise UnsupportedModel(f"{self.checkpoint.folder}: its decoder does not call its layers in order")
        return Batch(tokens, embedded, calls)

    def embed_all(self, rows: Tensor) -> list[Batch]:
        """rows: [any number, length], in batches that go through a layer together."""
        return [self.embed(some) for some in rows.split(_ROWS_A_BATCH)]

    @torch.inference_mode()
    def apply(self, layer: nn.Module, index: int, batch: Batch) -> Tensor:
        """The layer's output for the batch's hidden states, [rows, length, hidden]."""
        call = batch.calls[index]
        output = layer(batch.hidden, *call.positional, **call.named | self.format.layer_arguments())
        return output if isinstance(output, Tensor) else output[0]

    @torch.inference_mode()
    def logits(self, batch: Batch, row: int) -> Tensor:
        """[length, vocabulary] float32 of one row, after the last layer."""
        self._absent[-1].output = batch.hidden[row : row + 1]
        try:
            answer = self.model(input_ids=batch.tokens[row : row + 1].to(self.device), use_cache=False)
        finally:
            self._absent[-1].output = None
        logits: Tensor = answer.logits[0]
        return logits.float()

    def float32_bytes(self) -> int:
        """What the decoder layers take when all are in memory."""
        return sum(4 * parameter.numel() for layer in self._layers for parameter in layer.parameters())

    @contextlib.contextmanager
    def resident(self) -> Iterator[nn.Module]:
        """The whole model with all its layers in memory, for generating."""
        with contextlib.ExitStack() as stack:
            layers = [stack.enter_context(self.layer(index)) for index in range(self.num_layers)]
            self._decoder.layers = nn.ModuleList(layers)
            try:
                yield self.model
            finally:
                self._decoder.layers = nn.ModuleList(self._absent)

    def _refuse_further_layers(self) -> None:
        start = f"{self.layer_prefix}."
        parts = [name.removeprefix(start).split(".")[0] for name in self.checkpoint.names if name.startswith(start)]
        if strange := [part for part in parts if not part.isdecimal()]:
            raise BadCheckpoint(f"{self.checkpoint.folder}: {start}{strange[0]} is no part of its architecture")
        numbers = {int(part) for part in parts}
        if numbers and max(numbers) >= self.num_layers:
            raise BadCheckpoint(
                f"{self.checkpoint.folder} has weights of layer {max(numbers)}, but config.json says {self.num_layers} layers"
            )

    def _load_frame(self) -> None:
        where = str(self.checkpoint.folder)
        tensors = self.format.decode({name: self.checkpoint.tensor(name) for name in self.frame_names()})
        for name, linear in tensors.linears.items():
            _fitting(self.model, name, linear, where)
            replace_module(self.model, name, linear.to(self.device))
        wanted = self.model.state_dict()
        # A tied head may be stored beside the embedding all the same.
        found = {
            name: tensor.to(self.device, torch.float32) for name, tensor in tensors.plain.items() if name in wanted
        }
        if surplus := sorted(set(tensors.plain) - set(found)):
            raise BadCheckpoint(f"{where}: {surplus[0]} is no part of its architecture")
        _assign(self.model, found, where)
        self.model.tie_weights()
        _check_complete(self.model, where)


def available_memory_bytes(device: str) -> int:
    """What can be taken without swapping."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    try:  # a container's limit
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - int(used)))


def _skeleton(checkpoint: Checkpoint) -> Any:
    """The model without weights. Buffers such as rotary frequencies are real: checkpoints do not hold them."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # transformers checks little: a wrong value in config.json may end in anything
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        kind = checkpoint.config.get("model_type")
        raise UnsupportedModel(f"{checkpoint.folder}: no causal language model of type {kind!r} ({reason})") from error
    return model.eval()


def _decoder_of(model: Any, checkpoint: Checkpoint) -> Any:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not any(isinstance(part, nn.Linear) for part in layers.modules()):
        kind = checkpoint.config.get("model_type")
        raise UnsupportedModel(
            f"{checkpoint.folder}: models of type {kind!r} are not a row of layers of linear modules"
        )
    return decoder


def _prefix_of(model: nn.Module, layers: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is layers)


def _first_input(decoder: nn.Module, first: _Absent, tokens: Tensor) -> Tensor:
    caught: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    try:
        decoder(input_ids=tokens, use_cache=False)
    finally:
        handle.remove()
    return caught[0]


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule of that dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _fitting(root: nn.Module, name: str, linear: nn.Module, where: str) -> nn.Module:
    """The module whose place a quantized one may take. Raises BadCheckpoint when it may not."""
    modules = dict(root.named_modules())
    plain = modules.get(name)
    if not isinstance(plain, nn.Linear):
        raise BadCheckpoint(f"{where}: quantized module {name} is no part of its architecture")
    if linear.weight.shape != (plain.out_features, plain.in_features):
        shape = [plain.out_features, plain.in_features]
        raise BadCheckpoint(f"{where}: quantized module {name} is {list(linear.weight.shape)}, and has to be {shape}")
    if (linear.bias is None) != (plain.bias is None):
        raise BadCheckpoint(
            f"{where}: quantized module {name} {'lacks its' if linear.bias is None else 'has no place for a'} bias"
        )
    return plain


def _give_back(layer: nn.Module) -> None:
    """Free the weights. Buffers stay: those that checkpoints do not hold cannot be had again."""
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))


def _assign(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Put tensors in the places of a module's parameters."""
    try:
        _, surplus = module.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise BadCheckpoint(f"{where}: {str(error).strip().splitlines()[-1].strip()}") from error
    if surplus:
        raise BadCheckpoint(f"{where}: {surplus[0]} is no part of its architecture")


def _check_complete(module: nn.Module, where: str) -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise BadCheckpoint(f"{where} has no tensor {name}, which its architecture needs")
