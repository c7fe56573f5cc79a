"""Imports point one way. The rules are data; the checker reads the sources and is itself tested with planted arrows."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("serving", "batching", "bench", "kernels", "quant")
# Room -> rooms it may import. The two wings (serving -> batching, quant -> kernels) never meet, and nobody needs bench.
ARROWS = {
    "serving": {"serving", "batching", "openai"},
    "batching": {"batching"},
    "quant": {"quant", "kernels"},
    "kernels": {"kernels"},
    "bench": {"bench", "serving", "batching", "openai", "quant", "kernels"},
}
# Part of the tree -> what it does without, anywhere in its own sources.
WITHOUT = {
    "burrstone.batching": {"torch", "triton", "vllm", "ray"},
    "burrstone.kernels": {"vllm", "ray", "transformers"},
    "burrstone.serving.edges": {"torch", "vllm", "ray"},
    "burrstone.serving.api": {"torch", "vllm", "ray"},
}
# Modules that are imported where vLLM, torch and Ray are not wanted: not even by way of others.
LIGHT = ("burrstone.serving.cli.main", "burrstone.serving.edges.http_api", "burrstone.serving.edges.grpc_listener")
HEAVY = {"torch", "vllm", "ray", "transformers", "numba"}
# Whoever names a module of vLLM's, and what it names. Everything else comes through vllm_compat.
COMPAT = "burrstone.serving.engine.vllm_compat"
VLLM_IMPORTERS = {
    # Importing is its purpose: this is what the fork server must have loaded.
    "burrstone.serving.engine.preload": {
        "vllm.model_executor.models.llama",
        "vllm.v1.engine.core",
        "vllm.v1.executor.multiproc_executor",
        "vllm.v1.worker.cpu_worker",
    },
    # Runs in every process of vLLM's, workers too, which must not load the front end that vllm_compat imports.
    "burrstone.serving.engine.plugin": {"vllm.platforms"},
    # The same for the engine core, which does not load that front end either.
    "burrstone.serving.engine.vllm_core_compat": {
        "vllm.v1.core.sched.async_scheduler",
        "vllm.v1.core.sched.scheduler",
        "vllm.v1.kv_cache_interface",
        "vllm.v1.request",
    },
    # The same for the quantization wing, which serving's module would bring the request wing to.
    "burrstone.quant.engine.vllm_compat": {
        "vllm._custom_ops",
        "vllm.compilation.passes.inductor_pass",
        "vllm.config",
        "vllm.model_executor.kernels.linear",
        "vllm.model_executor.layers.fused_moe",
        "vllm.model_executor.layers.linear",
        "vllm.model_executor.layers.quantization",
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "vllm.model_executor.parameter",
        "vllm.model_executor.utils",
        "vllm.platforms",
        "vllm.v1.attention.backend",
        "vllm.v1.attention.backends.registry",
        "vllm.v1.attention.backends.utils",
        "vllm.v1.kv_cache_interface",
    },
    # The public version; and bare vLLM's server, started as a command.
    "burrstone.bench.machine": {"vllm"},
    # Its public offline API.
    "burrstone.bench.live_engine": {"vllm"},
    "burrstone.bench.peers.table": {"vllm.entrypoints.launchers.api_server.entry"},
}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Module:
    """`imports`: dotted name -> whether it is needed to import the module. `attributes`: chains such as `ray.get`."""

    name: str
    imports: dict[str, bool]
    attributes: frozenset[str]


def read_tree(root: Path) -> list[Module]:
    """Every module of the rooms, without generated stubs and caches."""
    found = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            if "__pycache__" not in path.parts and "proto" not in path.parts:
                name = ".".join(["burrstone", *path.relative_to(root).with_suffix("").parts])
                tree = ast.parse(path.read_text(), str(path))
                found.append(Module(name.removesuffix(".__init__"), _imports(tree, name), frozenset(_attributes(tree))))
    return found


def problems(modules: list[Module]) -> list[str]:
    """Every broken rule as `module -> import: rule`."""
    found = [f"{module.name} -> {name}: {rule}" for module in modules for name, rule in _broken(module)]
    return found + list(_heavy(modules)) + [f"{' -> '.join(circle)}: a circle" for circle in circles(modules)]


def _broken(module: Module) -> Iterator[tuple[str, str]]:
    room = module.name.split(".")[1]
    for name in module.imports:
        top, *rest = name.split(".")
        if top == "burrstone" and rest and rest[0] not in ARROWS[room]:
            yield name, f"{room} does not import {rest[0]}"
        for part, without in WITHOUT.items():
            if top in without and f"{module.name}.".startswith(f"{part}."):
                yield name, f"{part} does without {top}"
        if top == "vllm" and module.name != COMPAT and name not in VLLM_IMPORTERS.get(module.name, ()):
            yield name, "vLLM is imported by vllm_compat"
        if top == "ray" and _private(name):
            yield name, "private to Ray"
    for chain in module.attributes:
        if chain.split(".")[0] in ("ray", "serve") and _private(chain):
            yield chain, "private to Ray"


def _private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _heavy(modules: list[Module]) -> Iterator[str]:
    known = {module.name: module for module in modules}
    for start in LIGHT:
        seen, todo = {start}, [start] if start in known else []
        while todo:
            for name, needed in known[todo[-1]].imports.items():
                if needed and name.split(".")[0] in HEAVY:
                    yield f"{todo[-1]} -> {name}: {start} would load it"
            names = [name for name, needed in known[todo.pop()].imports.items() if needed and name in known]
            todo += [name for name in names if name not in seen]
            seen |= set(names)


def circles(modules: list[Module]) -> list[tuple[str, ...]]:
    """Modules that need one another to be imported, each circle once."""
    needs = {m.name: {name for name, needed in m.imports.items() if needed} for m in modules}
    found: dict[frozenset[str], tuple[str, ...]] = {}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            found.setdefault(frozenset(circle), circle)
        elif name in needs and name not in done:
            for other in sorted(needs[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in needs:
        visit(name, ())
    return list(found.values())


def _imports(tree: ast.Module, module: str) -> dict[str, bool]:
    """Imports wherever they stand, and modules named as strings (import_module, commands), which are never needed."""
    found: dict[str, bool] = {}
    top_level = {id(node) for node in _outside_functions(tree)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            names = [f"{base}.{alias.name}" if _is_module(base, alias.name) else base for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            top, below = node.value.split(".")[:2]
            names = [node.value] if top in HEAVY or (top == "burrstone" and below in ROOMS) else []
        for name in names:
            found[name] = found.get(name, False) or id(node) in top_level
    return found


def _is_module(package: str, name: str) -> bool:
    """Whether `from package import name` brings in a module of ours (or one of Ray's private ones)."""
    below = ROOT.joinpath(*package.split(".")[1:])
    ours = package.split(".")[0] == "burrstone" and ((below / f"{name}.py").exists() or (below / name).is_dir())
    return ours or (package.split(".")[0] == "ray" and name.startswith("_"))


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def _attributes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name):
            yield ".".join([node.id, *reversed(parts)])


def test_imports_point_one_way() -> None:
    modules = read_tree(ROOT)
    assert len(modules) > 50
    assert problems(modules) == []


def test_the_lists_name_only_what_is_there() -> None:
    """A rule or an exception for a module that has gone would hold nothing."""
    modules = {module.name: module for module in read_tree(ROOT)}
    assert set(LIGHT) | {COMPAT} <= modules.keys()
    for name, allowed in VLLM_IMPORTERS.items():
        assert allowed == {imported for imported in modules[name].imports if imported.split(".")[0] == "vllm"}


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("batching/queue.py", "from burrstone.serving.config import ServeConfig", "batching does not import serving"),
        ("batching/queue.py", "def f():\n    import torch", "burrstone.batching does without torch"),
        ("batching/deep/queue.py", "from vllm.v1 import core", "burrstone.batching does without vllm"),
        ("serving/app.py", "import burrstone.quant.engine.plugin", "serving does not import quant"),
        ("serving/app.py", "from burrstone.bench import cli", "serving does not import bench"),
        ("serving/app.py", "import_module('burrstone.bench.cli')", "serving does not import bench"),
        ("serving/app.py", "from ..bench import cli", "serving does not import bench"),
        ("serving/api/chat.py", "from ray import serve", "burrstone.serving.api does without ray"),
        ("serving/edges/http.py", "from vllm import LLM", "burrstone.serving.edges does without vllm"),
        ("serving/app.py", "from vllm.config import VllmConfig", "vLLM is imported by vllm_compat"),
        ("serving/engine/preload.py", "import vllm.v1.request", "vLLM is imported by vllm_compat"),
        ("serving/app.py", "run(['-m', 'vllm.entrypoints.openai'])", "vLLM is imported by vllm_compat"),
        ("serving/app.py", "from ray._private import worker", "private to Ray"),
        ("serving/app.py", "from ray import _private", "private to Ray"),
        ("serving/app.py", "import ray\nray._private.worker.global_worker", "private to Ray"),
        ("serving/app.py", "from ray import serve\nserve.context._get_global_client()", "private to Ray"),
        ("kernels/op.py", "import burrstone.quant.scheme", "kernels does not import quant"),
        ("quant/scheme.py", "from burrstone.batching.errors import ServeError", "quant does not import batching"),
        ("serving/cli/main.py", "import torch", "burrstone.serving.cli.main would load it"),
        ("serving/cli/main.py", "class A:\n    import torch", "burrstone.serving.cli.main would load it"),
    ],
)
def test_a_planted_arrow_is_caught(tmp_path: Path, path: str, source: str, rule: str) -> None:
    _plant(tmp_path, {path: source})
    assert rule in [problem.split(": ", 1)[1] for problem in problems(read_tree(tmp_path))]


def test_an_arrow_by_way_of_another_module_is_caught(tmp_path: Path) -> None:
    chain = {"serving/cli/main.py": "import burrstone.serving.b", "serving/b.py": "import torch"}
    _plant(tmp_path, chain)
    assert problems(read_tree(tmp_path)) == [
        "burrstone.serving.b -> torch: burrstone.serving.cli.main would load it",
    ]
    _plant(tmp_path, chain | {"serving/b.py": "def f():\n    import torch"})
    assert problems(read_tree(tmp_path)) == []


def test_a_circle_is_caught(tmp_path: Path) -> None:
    ring = {f"serving/{here}.py": f"import burrstone.serving.{there}" for here, there in ("ab", "bc", "ca")}
    _plant(tmp_path, ring)
    assert [problem.split(": ")[1] for problem in problems(read_tree(tmp_path))] == ["a circle"]
    _plant(tmp_path, ring | {"serving/c.py": "def f():\n    import burrstone.serving.a"})
    assert problems(read_tree(tmp_path)) == []


def _plant(root: Path, sources: dict[str, str]) -> None:
    for path, source in sources.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(source)
