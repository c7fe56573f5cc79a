"""The gRPC services as their generated modules describe them: what is added to the protos is in here without asking."""

import importlib
from pathlib import Path
from typing import Any

PROTOS = Path(__file__).parents[2] / "serving/proto/burrstone/openai/v1"
MODULES = [importlib.import_module(f"burrstone.openai.v1.{file.stem}_pb2") for file in sorted(PROTOS.glob("*.proto"))]
SERVICES: list[Any] = [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]
