"""Quantizing runs in processes of their own, which can be held at a step, killed there, or made to die at a file's name.

The processes grow out of one fork server that has torch and transformers loaded, so that each costs milliseconds.
"""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tiny_models import byte_tokenizer
from waiting import wait_until

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import QuantizeError
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.job import Job
from burrstone.quant.progress import SilentBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import Split, Tokens, load_tokens
from burrstone.quant.verdict import Margins
from burrstone.quant.workspace import Workspace

CONTEXT = multiprocessing.get_context("forkserver")
ROWS, LENGTH = 8, 48
# Of the embedded model, in the checkpoint that engines are started with: few, so that it is soon compiled.
INT8_LAYERS = 4
RTN = Recipe(method="rtn")
HELD_RUN: dict[str, Any] = {"recipe": {"schemes": "w8a8-int8"}, "source_digest": "sha256:1", "threads": 1}
_PRELOADED = ("burrstone.quant.job", "transformers.models.llama.modeling_llama", "accelerate", "tokenizers")
_HERE = "here"


@dataclass(frozen=True)
class Plan:
    """What a process makes. `die` is (operation, file name, which time): it kills itself just before that.

    A file larger than `max_file_bytes` cannot be written; or, if `deadly`, ends the process while it is written.
    """

    source: Path
    out: Path
    recipe: Recipe = RTN
    text: Path | None = None
    restart: bool = False
    until: Margins | None = None
    held_out: Path | None = None
    hold_at_step: int | None = None
    die: tuple[str, str, int] | None = None
    max_file_bytes: int | None = None
    deadly: bool = False


@dataclass
class Making:
    """A process at work on a plan."""

    plan: Plan
    process: Any
    pipe: Connection
    messages: list[str] = field(default_factory=list)

    def wait_held(self) -> None:
        assert self.pipe.poll(60), "it neither got to the step nor ended"
        message = self.pipe.recv()
        assert message == _HERE, message

    def go_on(self) -> None:
        self.pipe.send("go")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.join(60)
        assert self.process.exitcode == -signal.SIGKILL

    def result(self) -> str:
        """How it ended: "" for done, "killed", or the kind and text of a QuantizeError; others' are on stderr."""
        try:
            assert self.pipe.poll(120), "it does not end"
            message: str = self.pipe.recv()
        except EOFError:
            message = ""
        self.process.join(60)
        self.pipe.close()
        code = self.process.exitcode
        return message if code == 0 else "killed" if code < 0 else f"unexpected end, exit code {code}"


def start(plan: Plan) -> Making:
    process, pipe = process_of(_work, plan)
    return Making(plan, process, pipe)


def process_of(work: Callable[[Any, Connection], None], given: Any) -> tuple[Any, Connection]:
    """A process that does work(given, pipe), and the pipe's other end."""
    CONTEXT.set_forkserver_preload(list(_PRELOADED))
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(given, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def hold_workspace(out: Path, pipe: Connection) -> None:
    """Work for `process_of`: holds the workspace of `out` until it is killed or told to go on."""
    Workspace(out, HELD_RUN)
    pipe.send("held")
    pipe.recv()


def make(plan: Plan) -> str:
    """Carry the plan out in a process of its own; how it ended."""
    return start(plan).result()


def here(plan: Plan) -> Job:
    """The same as a job of this process."""
    tokens = None if plan.text is None else tokens_of(plan.text, split="calibration")
    until = None
    if plan.until is not None and plan.held_out is not None:
        text = tokens_of(plan.held_out)
        until = Evaluation(Checkpoint(plan.source), Data(text), SilentBar(), margins=plan.until)
    return Job(Checkpoint(plan.source), plan.out, plan.recipe, tokens, SilentBar(), restart=plan.restart, until=until)


def write_text(file: Path, seed: int) -> Path:
    """Text for a few more rows than are taken, drawn from a seed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(2, 9))) for _ in range(120)]
    file.write_text(" ".join(words))
    return file


def tokens_of(file: Path, rows: int = ROWS, length: int = LENGTH, split: Split = "held-out") -> Tokens:
    return load_tokens(str(file), byte_tokenizer(), rows=rows, length=length, split=split)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def layers_done(out: Path) -> int:
    """By state.json, which other processes replace at any time."""
    try:
        return len(json.loads((partial(out) / ".state.json").read_text())["layers"])
    except (FileNotFoundError, KeyError):
        return 0


def wait_layers(making: Making, layers: int) -> None:
    wait_until(lambda: layers_done(making.plan.out) >= layers or not making.process.is_alive())


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None] | None]:
    """A tmpfs on `folder`; yields a function that gives it other options. None where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return

    def change(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class _HeldBar(SilentBar):
    """Stops the work at one of its steps until it is told to go on."""

    def __init__(self, pipe: Connection, at_step: int | None) -> None:
        self._pipe, self._at, self._steps = pipe, at_step, 0

    def step(self) -> None:
        self._steps += 1
        if self._steps == self._at:
            self._pipe.send(_HERE)
            self._pipe.recv()


def _work(plan: Plan, pipe: Connection) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if plan.deadly else signal.SIG_IGN)
    if plan.max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.max_file_bytes, plan.max_file_bytes))
    if plan.die is not None:
        _die_before(*plan.die)
    try:
        job = here(plan)
        job.bar = _HeldBar(pipe, plan.hold_at_step)
        job.run()
    except QuantizeError as error:
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("")


def _die_before(operation: str, name: str, time: int) -> None:
    """Let this process kill itself just before the `time`-th call of os.`operation` that ends at a file `name`."""
    real: Callable[..., None] = getattr(os, operation)
    seen = 0

    def deadly(*arguments: Any, **named: Any) -> None:
        nonlocal seen
        seen += Path(arguments[-1]).name == name
        if seen == time:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **named)

    setattr(os, operation, deadly)
