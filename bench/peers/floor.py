"""The physical floor of a decode step: every weight is read once a token, and memory gives so many bytes a second."""

import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_BYTES_EACH = 2**28
_TRIES = 5
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_bytes_per_s(cores: int) -> float:
    """What all cores together read from memory, the best of some tries: arrays far larger than any cache, a maximum each."""
    arrays = [np.zeros(_BYTES_EACH // 8, dtype=np.int64) for _ in range(cores)]
    for array in arrays:
        array.fill(1)  # pages that were never written all lie in one place
    took_s = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(_TRIES):
            began_s = time.perf_counter()
            list(pool.map(np.max, arrays))
            took_s.append(time.perf_counter() - began_s)
    return cores * _BYTES_EACH / min(took_s)


def weight_bytes_per_token(folder: Path) -> int:
    """Of a safetensors folder: all of it, but for an embedding that is not the output head too, of which one row is read."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        sizes |= {
            name: tensor["data_offsets"][1] - tensor["data_offsets"][0]
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    if _HEAD in sizes:
        sizes.pop(_EMBEDDING, None)
    return sum(sizes.values())
