"""What became of one offered request, and the figures of it. All times are seconds since the run's start.

Definitions. TTFT: from the *intended* time of sending to the first piece of the answer, so that a client or a server that
stalls cannot hide what it makes others wait (coordinated omission); `ttft_sent_s` counts from the sending itself, as other tools
do. ITL: each gap between pieces. TPOT: (last piece - first) / (output tokens - 1), by request. E2E: to the last piece.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from burrstone.batching.sim.traffic.workload import Slo
from burrstone.bench.files import whole_file

NO_SLO = Slo()
NOT_SENT = "not sent"


@dataclass(slots=True)
class Record:
    """`pieces_s`: when each piece of the answer came. `error`: None for an answer that came whole.

    Token counts are the server's usage; prompt and cached tokens are None where it does not tell.
    """

    number: int
    intended_s: float
    tenant: str = "default"
    program: int | None = None
    slo: Slo = NO_SLO
    sent_s: float = math.nan
    pieces_s: list[float] = field(default_factory=list)
    ended_s: float = math.nan
    output_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = NOT_SENT

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def late_s(self) -> float:
        """How much later than intended it was sent: the client's own fault."""
        return self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float:
        return self.pieces_s[0] - self.intended_s

    @property
    def ttft_sent_s(self) -> float:
        return self.pieces_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.pieces_s[-1] - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """None for an answer of one token, which has none after its first."""
        if self.output_tokens < 2:
            return None
        return (self.pieces_s[-1] - self.pieces_s[0]) / (self.output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Between pieces."""
        return [later - earlier for earlier, later in zip(self.pieces_s, self.pieces_s[1:], strict=False)]

    @property
    def good(self) -> bool:
        """Whole, and within all of its SLOs."""
        if not self.ok:
            return False
        tpot_s = self.tpot_s
        in_time = self.ttft_s <= self.slo.ttft_s and self.e2e_s <= self.slo.e2e_s
        return in_time and (tpot_s is None or tpot_s <= self.slo.tpot_s)


def write_records(file: Path, records: Iterable[Record]) -> None:
    """One JSON object a line; what is infinite or never came is null."""
    with whole_file(file) as scratch, scratch.open("w") as out:
        for record in records:
            out.write(json.dumps(_finite(asdict(record)), allow_nan=False) + "\n")


def read_records(file: Path) -> Iterator[Record]:
    """What `write_records` wrote."""
    with file.open() as lines:
        for line in lines:
            row = json.loads(line)
            slo = {name: math.inf if value is None else value for name, value in row.pop("slo").items()}
            times = {name: math.nan if row[name] is None else row[name] for name in ("sent_s", "ended_s")}
            yield Record(**row | times, slo=Slo(**slo))


def _finite(row: dict[str, object]) -> dict[str, object]:
    return {
        name: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in row.items()
    }
