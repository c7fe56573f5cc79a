"""The compile gate: every kernel, in every way it is launched, compiled for each target without a GPU and looked at.

What it refuses: registers that spill, more registers than the kernel's budget, more shared memory or threads than the
target has, no tensor-core instruction where one must be, loads of single bytes where sixteen belong. What it measures is
compared with a golden file, so that a change of any figure is seen.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from burrstone.kernels.builds import Build

_CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
_TENSOR_CORES = ("UTCIMMA", "IGMMA", "HGMMA", "UTCHMMA", "IMMA", "HMMA")
_INSTRUCTIONS = (*_TENSOR_CORES, "UTMALDG", "LDGSTS", "I2F")


@dataclass(frozen=True, slots=True)
class Target:
    """What a kernel may use there. shared_bytes: of one program."""

    device: GPUTarget
    shared_bytes: int
    max_threads: int = 1024


TARGETS = {
    "sm80": Target(GPUTarget("cuda", 80, 32), 166_912),
    "sm89": Target(GPUTarget("cuda", 89, 32), 101_376),
    "sm90": Target(GPUTarget("cuda", 90, 32), 232_448),
    "sm100": Target(GPUTarget("cuda", 100, 32), 232_448),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 65_536),
}


def compiled(build: Build, target: Target) -> dict[str, Any]:
    """Figures of one build on one target, as JSON values."""
    names = build.kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in build.aligned}
    types = {name: build.types.get(name, "constexpr") for name in names}
    source = ASTSource(fn=build.kernel, signature=types, constexprs=dict(build.constants), attrs=aligned)
    # Whether products are fused into sums must not depend on a version's default.
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages, "enable_fp_fusion": True}
    kernel = triton.compile(source, target=target.device, options=options)
    figures = {
        "shared_bytes": kernel.metadata.shared,
        "threads": kernel.metadata.num_warps * target.device.warp_size,
    }
    return figures | (_amd(kernel) if target.device.backend == "hip" else _nvidia(kernel))


def _nvidia(kernel: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "-res-usage", "-sass", file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK):(\d+)", sass))
    counts = {name: len(re.findall(rf"(?<![\w.]){name}\b", sass)) for name in _INSTRUCTIONS}
    return {
        "registers": int(usage["REG"]),
        "spilled": int(usage["STACK"]) + len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "byte_loads": len(re.findall(r"ld\.global[\w.:]*\.b8\b", kernel.asm["ptx"])),
        "instructions": {name: count for name, count in counts.items() if count},
    }


def _amd(kernel: Any) -> dict[str, Any]:
    assembly = kernel.asm["amdgcn"]
    counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", assembly))
    matrix = len(re.findall(r"\bv_mfma\w*", assembly))
    return {
        "registers": int(counts["vgpr_count"]),
        "spilled": int(counts["vgpr_spill_count"]) + int(counts["sgpr_spill_count"]),
        "byte_loads": len(re.findall(r"\bglobal_load_[us]byte\w*|buffer_load_[us]byte\w*", assembly)),
        "instructions": {"v_mfma": matrix} if matrix else {},
    }


def faults(build: Build, target: Target, figures: dict[str, Any]) -> Iterator[str]:
    """Why the target cannot run this, or not well."""
    if figures["spilled"]:
        yield f"{figures['spilled']} spilled"
    if figures["registers"] > build.max_registers:
        yield f"{figures['registers']} registers, more than {build.max_registers}"
    if figures["shared_bytes"] > target.shared_bytes:
        yield f"{figures['shared_bytes']} bytes of shared memory, of {target.shared_bytes}"
    if figures["threads"] > target.max_threads:
        yield f"{figures['threads']} threads, of {target.max_threads}"
    if build.tensor_cores and not {*_TENSOR_CORES, "v_mfma"} & figures["instructions"].keys():
        yield "no tensor-core instruction"
    if figures["byte_loads"]:
        yield f"{figures['byte_loads']} loads of single bytes"
