"""ServeGen archives, made up and small."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.servegen import client_mix, read_servegen

DATASET = {
    "0": {"input_tokens": "{}", "output_tokens": "{}"},
    "600": {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{7: 1.0}"},
}
TRACE = "0,0,0,,0,0\n600,5.0,1.0,Gamma,1.0,0.2\n1200,2.0,2.4,Weibull,0.5,0.25\n"


def archive(folder: Path, **members: str) -> Path:
    path = folder / "clients.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(f"data/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def chunks(number: int, trace: str = TRACE, dataset: str | None = json.dumps(DATASET)) -> dict[str, str]:
    found = {f"chunk-{number}-trace.csv": trace}
    return found | ({f"chunk-{number}-dataset.json": dataset} if dataset else {})


def test_clients_send_at_their_rates_and_lengths(tmp_path: Path) -> None:
    clients = read_servegen(archive(tmp_path, **chunks(0), **chunks(1)))
    workload = client_mix(clients, start_s=0, duration_s=1800, seed=4)
    assert workload.num_tenants == 2
    counts = np.histogram(workload.arrival_s, bins=[0, 600, 1200, 1800])[0]
    assert counts[0] == 0
    assert counts[1] == pytest.approx(2 * 5 * 600, rel=0.05)
    assert counts[2] == pytest.approx(2 * 2 * 600, rel=0.2)
    assert set(workload.input_tokens.tolist()) == {100, 200}
    assert np.mean(workload.input_tokens == 200) == pytest.approx(0.75, abs=0.02)
    assert set(workload.output_tokens.tolist()) == {7}


def test_a_part_of_the_day_begins_at_zero_and_is_scaled(tmp_path: Path) -> None:
    clients = read_servegen(archive(tmp_path, **chunks(0)))
    workload = client_mix(clients, start_s=900, duration_s=300, seed=4, scale=10)
    assert len(workload) == pytest.approx(10 * 5 * 300, rel=0.05)
    assert workload.arrival_s[0] < 1.0
    assert workload.arrival_s[-1] < 300.0


def test_a_client_without_published_lengths_is_left_out(tmp_path: Path) -> None:
    clients = read_servegen(archive(tmp_path, **chunks(0, dataset=None), **chunks(7)))
    assert [client.number for client in clients] == [7]


def test_a_client_is_the_same_whoever_else_there_is(tmp_path: Path) -> None:
    both = read_servegen(archive(tmp_path, **chunks(0), **chunks(7)))
    mixed = client_mix(both, start_s=600, duration_s=60, seed=4)
    alone = client_mix(both[1:], start_s=600, duration_s=60, seed=4)
    assert np.array_equal(mixed.arrival_s[mixed.tenant == 1], alone.arrival_s)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"readme.txt": "x"}, r"no chunk-<n>-trace.csv in it"),
        (chunks(0, trace="0,many,1,,0,0"), r"chunk-0-trace.csv:1: rate must be a number >= 0, got 'many'"),
        (chunks(0, trace="0,1\n600,5,1,Pareto,1,1"), r"chunk-0-trace.csv:2: family must be Gamma or Weibull"),
        (chunks(0, dataset="{"), r"chunk-0-dataset.json: not JSON"),
        (chunks(0, dataset='{"0": {"input_tokens": "{}"}}'), r"chunk-0-dataset.json:1: 0.output_tokens is missing"),
        (chunks(0, dataset='{"0": {"input_tokens": "{1: x}"}}'), r"0.input_tokens must be a mapping"),
    ],
)
def test_a_wrong_archive_is_told_where_and_why(tmp_path: Path, members: dict[str, str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_servegen(archive(tmp_path, **members))


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tar.xz").write_text("no")
    with pytest.raises(UsageError, match="cannot be read as a tar archive"):
        read_servegen(tmp_path / "x.tar.xz")
