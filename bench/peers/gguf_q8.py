"""A GGUF file with its matrices in Q8_0, so that llama.cpp computes in eight bits as W8A8 does."""

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

_Q8 = GGMLQuantizationType.Q8_0
# The writer says these itself.
_WRITERS = ("general.architecture", "general.file_type")


def write_q8(source: Path, out: Path) -> None:
    """source's matrices, however they are stored, as Q8_0; its vectors and facts as they are."""
    reader = GGUFReader(source)
    writer = GGUFWriter(out, reader.fields[_WRITERS[0]].contents())
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in _WRITERS:
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind is GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if len(tensor.shape) == 2 and tensor.tensor_type is not _Q8:
            values = dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quantize(values, _Q8), raw_dtype=_Q8)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
