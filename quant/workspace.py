"""The folder in which a checkpoint grows: OUT.partial, which becomes OUT by one rename when everything is in it.

A layer is done when .state.json says so, and that is replaced only after the layer's files are on the disk; so a
run that was killed goes on after its last whole layer. A full disk leaves the same.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from burrstone.quant.disk import disk_errors, settle, sync
from burrstone.quant.errors import BadCheckpoint, Interfered, OutOfSpace

# Hidden, so that it is no file of the checkpoint: not copied from a source, not part of a digest.
_STATE = ".state.json"
_SCRATCH = ".scratch"
# Left free on the disk beside what is written.
_SPARE_BYTES = 64 * 2**20


class Workspace:
    """`run` says what is being made (source, recipe, data, versions); a folder made for something else is refused.

    Raises Interfered when OUT exists, when another process works on it, or when OUT.partial is another run's.
    """

    def __init__(self, out: Path, run: dict[str, Any], *, restart: bool = False) -> None:
        self.out = out
        self.state: dict[str, Any] = {}
        self.folder = out.with_name(f"{out.name}.partial")
        if out.exists():
            raise Interfered(f"{out} exists; remove it or choose another -o")
        with self._disk():
            self._lock = self._locked()
        try:
            self._open(run, restart)
        except BaseException:
            self.close()
            raise

    def _open(self, run: dict[str, Any], restart: bool) -> None:
        if self.out.exists():  # another process may have finished since
            raise Interfered(f"{self.out} exists; remove it or choose another -o")
        if restart:
            self._clear()
        self.state = self._read_state()
        if self.state.setdefault("run", run) != run:
            old = self.state["run"]
            different = ", ".join(sorted(key for key in {*run, *old} if run.get(key) != old.get(key)))
            raise Interfered(f"{self.folder} belongs to a run with another {different}; give --restart to start anew")
        self.state.setdefault("layers", [])
        self.save_state()

    @property
    def layers_done(self) -> int:
        return len(self.state.get("layers", ()))

    def save_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write one safetensors file, whole or not at all."""
        scratch = self.folder / _SCRATCH
        need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        free = shutil.disk_usage(self.folder).free
        if free < need + _SPARE_BYTES:
            raise OutOfSpace(f"{self.folder}: {free} bytes are free, {name} needs {need}; make room and run again")
        with self._disk():
            save_file(tensors, scratch, metadata={"format": "pt"})
            # safetensors lets nobody but the owner read; others may be those who serve. As the folder's own mode allows.
            scratch.chmod(self.folder.stat().st_mode & 0o666)
            self._settle(scratch, name)

    def load_tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(
                f"{self.folder / name} cannot be read ({error}); give --restart to start anew"
            ) from error

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        self.save_text(name, json.dumps(content, indent=2) + "\n")

    def save_text(self, name: str, text: str) -> None:
        scratch = self.folder / _SCRATCH
        with self._disk():
            scratch.write_text(text)
            self._settle(scratch, name)

    def copy(self, files: Iterator[Path]) -> None:
        scratch = self.folder / _SCRATCH
        for file in files:
            with self._disk():
                shutil.copyfile(file, scratch)
                self._settle(scratch, file.name)

    def save_state(self) -> None:
        self.save_json(_STATE, self.state)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self, wanted: set[str]) -> None:
        """Remove what is neither wanted in the checkpoint nor the state: a killed process leaves all kinds of scratch."""
        for entry in self.folder.iterdir():
            if entry.name not in wanted and entry.name != _STATE:
                entry.unlink()

    def finish(self) -> None:
        """Make OUT of the folder."""
        self.remove(_SCRATCH)
        with self._disk():
            sync(self.folder)
            try:
                os.rename(self.folder, self.out)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise Interfered(f"{self.out} was made by somebody meanwhile; move it away and run again") from error
            # Only now: until the rename, it is by this file that a run goes on.
            (self.out / _STATE).unlink()
            sync(self.out)
            sync(self.out.parent)

    def close(self) -> None:
        """Let others work on it."""
        os.close(self._lock)

    def _locked(self) -> int:
        """A descriptor of the folder, which is locked: no other process has it. The kernel drops it when we die."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The other process may have finished, and so renamed it, between our two calls.
            if not self.folder.is_dir() or os.fstat(descriptor).st_ino != self.folder.stat().st_ino:
                raise BlockingIOError
        except BlockingIOError as error:
            os.close(descriptor)
            raise Interfered(f"another process is making {self.out}") from error
        return descriptor

    def _clear(self) -> None:
        entries = list(self.folder.iterdir())
        if folders := [entry.name for entry in entries if entry.is_dir()]:
            raise Interfered(f"{self.folder} holds a folder {folders[0]}, which is not ours; remove it by hand")
        for entry in entries:
            entry.unlink()

    def _read_state(self) -> dict[str, Any]:
        file = self.folder / _STATE
        if not file.exists():
            if any(entry.name != _SCRATCH for entry in self.folder.iterdir()):
                raise Interfered(f"{self.folder} holds no {_STATE}; remove it or give --restart to start anew")
            return {}
        try:
            state: dict[str, Any] = json.loads(file.read_text())
            whole = isinstance(state["run"], dict) and isinstance(state["layers"], list)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise Interfered(f"{file} is not what a run of ours writes; remove it or give --restart to start anew")
        return state

    def _settle(self, scratch: Path, name: str) -> None:
        settle(scratch, self.folder / name)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            with disk_errors(self.folder, f"{self.layers_done} layers are kept, make room and run again"):
                yield
        except OutOfSpace:
            self.remove(_SCRATCH)
            raise
