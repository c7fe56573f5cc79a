"""`burrstone bench traces`: recorded workloads that are public, and how to get them."""

import argparse
import difflib
import hashlib
import shlex
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from burrstone.batching.errors import UsageError
from burrstone.bench.files import whole_file

_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces"
_SPLITWISE = "CC-BY 4.0, cite Splitwise (ISCA 2024)"
_PIECE_BYTES = 2**16
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Trace:
    """`file`: what it is called here. `sha256` and `size_bytes` are of the file that we have read, None where we have not.
    `by_hand`: how to get what is no single file."""

    name: str
    about: str
    licence: str
    url: str
    file: str
    size_bytes: int | None = None
    sha256: str | None = None
    by_hand: str | None = None


TRACES = (
    Trace(
        "azure-conv",
        "chats, 19,366 in 58 minutes, steady arrivals (CV 1.1); no prefixes, no tenants",
        _SPLITWISE,
        f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
        "azure_llm_2023_conv.csv",
        719_188,
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    Trace(
        "azure-code",
        "code completion, 8,819 in 57 minutes, in bursts (CV 13), short answers; no prefixes, no tenants",
        _SPLITWISE,
        f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
        "azure_llm_2023_code.csv",
        320_117,
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    ),
    Trace(
        "mooncake-conversation",
        "long chats, 12,031 in 59 minutes, 12,000 prompt tokens on average, 37 % of them shared prefixes",
        "Apache-2.0",
        f"{_MOONCAKE}/conversation_trace.jsonl",
        "mooncake_conversation_trace.jsonl",
        3_029_533,
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    ),
    Trace(
        "mooncake-toolagent",
        "agents with tools, long shared prefixes",
        "Apache-2.0",
        f"{_MOONCAKE}/toolagent_trace.jsonl",
        "mooncake_toolagent_trace.jsonl",
    ),
    Trace(
        "mooncake-synthetic",
        "Poisson arrivals, 65 % of prompt tokens shared prefixes",
        "Apache-2.0",
        f"{_MOONCAKE}/synthetic_trace.jsonl",
        "mooncake_synthetic_trace.jsonl",
    ),
    Trace(
        "servegen-reasoning",
        "reasoning, 73 clients over a day, each with its rate, bursts and lengths; clients are tenants",
        "Apache-2.0",
        "https://github.com/alibaba/ServeGen",
        "servegen_deepseek-r1.tar.xz",
        by_hand=(
            "git clone --depth 1 https://github.com/alibaba/ServeGen && "
            "tar -cJf servegen_deepseek-r1.tar.xz -C ServeGen data/reason/deepseek-r1"
        ),
    ),
)


def add_parser(kinds: Any) -> None:
    traces = kinds.add_parser(
        "traces",
        help="public recorded workloads",
        description="Recorded workloads that are public: times and lengths of requests, no texts.",
    )
    actions = traces.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("list", help="what there is", description="What there is, and under which licence.")
    shown.set_defaults(run=_list)
    got = actions.add_parser(
        "fetch",
        help="download one",
        description="Download a trace, check it, and say how to use it. A download that fails leaves no file.",
    )
    got.add_argument("name", metavar="NAME", help="`burrstone bench traces list` shows them")
    got.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="where it goes [here]")
    got.set_defaults(run=_fetch)


def _list(_: argparse.Namespace) -> int:
    for trace in TRACES:
        size = "size not known" if trace.size_bytes is None else f"{trace.size_bytes / 1e6:.1f} MB"
        print(f"{trace.name}\n    {trace.about}\n    {trace.licence}; {size if trace.by_hand is None else 'by hand'}")
        print(f"    {trace.url}\n    sha256 {trace.sha256 or 'not known'}")
        if trace.by_hand is not None:
            print(f"    {trace.by_hand}")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    file = fetch(trace_of(arguments.name), arguments.to)
    print(f"{file}\nburrstone bench run --workload {shlex.quote(f'trace:{file}')}")
    return 0


def trace_of(name: str) -> Trace:
    """Raises UsageError with the nearest name."""
    by_name = {trace.name: trace for trace in TRACES}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(by_name)}"
        raise UsageError(f"no trace {name!r}; {hint}")
    return by_name[name]


def fetch(trace: Trace, folder: Path) -> Path:
    """The file, downloaded unless it is there and right. Raises UsageError, and leaves no file then."""
    file = folder / trace.file
    if trace.by_hand is not None:
        raise UsageError(f"{trace.name} is no single file; make it with\n{trace.by_hand}")
    if trace.sha256 is not None and file.is_file() and _sha256(file) == trace.sha256:
        return file
    with whole_file(file) as scratch:
        try:
            _download(trace, scratch)
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            raise UsageError(
                f"{trace.url} cannot be downloaded ({reason}); on a machine that can:\ncurl -L -o {trace.file} {trace.url}\n"
                f"and put it to {file}"
            ) from error
        if trace.sha256 is not None and (found := _sha256(scratch)) != trace.sha256:
            raise UsageError(
                f"{trace.url} is not the file that was read when this was written: its SHA-256 is {found}, expected "
                f"{trace.sha256}; nothing was kept"
            )
    return file


def _download(trace: Trace, scratch: Path) -> None:
    """Raises UsageError for fewer bytes than the server announced."""
    with urllib.request.urlopen(trace.url, timeout=_TIMEOUT_S) as reply, scratch.open("wb") as out:
        announced = reply.headers.get("Content-Length")
        total = None if announced is None else int(announced)
        done = 0
        with tqdm(total=total, unit="B", unit_scale=True, desc=trace.file, file=sys.stderr, disable=None) as bar:
            while piece := reply.read(_PIECE_BYTES):
                out.write(piece)
                done += len(piece)
                bar.update(len(piece))
    if total is not None and done != total:
        raise UsageError(
            f"{trace.url}: the download ended after {done:,} of {total:,} bytes; nothing was kept, try again"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
