"""`python serving/proto/generate.py [FOLDER]`: the Python stubs of every .proto file, into FOLDER or beside the files."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO_ROOT = Path(__file__).parent


def generate(target: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi and *_pb2_grpc.py under `target`. Raises RuntimeError when protoc refuses."""
    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    include = files("grpc_tools") / "_proto"
    code = protoc.main(["protoc", f"-I{PROTO_ROOT}", f"-I{include}", *outputs, *sources])
    if code != 0:
        raise RuntimeError(f"protoc failed with exit code {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_ROOT)
