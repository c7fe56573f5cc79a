"""Kernels that kernels call are compiled as parts of the one that Python calls.

Numba by itself optimises and emits every function for itself, and once more within each of its callers. The simulator
calls nearly a hundred functions deep into one another, each with the hundred numbers that its arrays are made of: that
took most of a cold start. A part is only lowered, and put into its caller whole; what Python calls is optimised once.
"""

from collections.abc import Callable
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """A function as kernels call it, by its part, and as Python calls it, by `whole`: the same one, compiled by itself."""

    def __init__(self, function: Callable[..., Any], whole: Any, options: dict[str, Any]) -> None:
        part = {"nopython": True, "forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        super().__init__(function, targetoptions={"boundscheck": None, **part, **options}, pipeline_class=_PartCompiler)
        self.whole = whole

    def __call__(self, *arguments: Any) -> Any:
        return self.whole(*arguments)

    def add_overload(self, result: Any) -> None:
        # The base class would also offer it to callers in Python, for whom it has no code.
        self.overloads[tuple(result.signature.args)] = result


class _PartCompiler(Compiler):  # type: ignore[misc]
    def compile_extra(self, function: Callable[..., Any]) -> Any:
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), function.__qualname__)
        self.state.flags.no_compile = True
        # Callers find a part by what would be its entry for Python.
        result = super().compile_extra(function)._replace(entry_point=object())
        result.target_context.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True
