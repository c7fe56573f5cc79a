"""The report is one file that needs nothing else, says what was measured, and a browser has nothing to complain about."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.batching.sim.measures import Latencies, latencies, summarise
from burrstone.batching.sim.report.page import Origin, page
from burrstone.batching.sim.report.plots import Axis, Series, cdf, chart, number, seconds
from burrstone.batching.sim.report.sections import (
    Contender,
    Curve,
    TenantFigures,
    Timeline,
    curve_section,
    fairness_section,
    latency_section,
    summary_section,
    timeline_section,
)
from burrstone.batching.sim.traffic.workload_types import Floats, Workload

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def contender(name: str) -> Contender:
    size = 30
    arrival_s = np.linspace(0.0, 10.0, size)
    asked = Workload(arrival_s, np.full(size, 100), np.full(size, 20), tenant=np.arange(size) % 2)
    first_s = arrival_s + 0.1 * np.arange(1, size + 1)
    found: Latencies = latencies(asked, arrival_s, first_s, first_s + 1.0, np.arange(size) != 3)
    summary = summarise(asked, found, 10.0)
    tenants = tuple(
        TenantFigures(f"tenant {n}", 1.0, 1000.0 * (n + 1), summarise(asked, found, 10.0, asked.tenant == n))
        for n in (0, 1)
    )
    timeline = Timeline(floats(0, 5, 10), floats(0, 3, 0), floats(1, 8, 0), floats(0, 0.7, 0.1))
    return Contender(name, (summary,), summary, found, (np.nan, np.nan, np.nan), 0.98, tenants, 2.0, 0.25, timeline)


def report(*names: str) -> str:
    contenders = [contender(name) for name in names]
    curves = [
        Curve(name, floats(1, 2, 4), floats(1, 0.97, 0.6), floats(1, 0.9, 0.5), floats(1, 1, 0.7)) for name in names
    ]
    sections = [
        summary_section(contenders),
        curve_section("How far", "the goal is dashed", [(Axis("requests per second"), curves)], 0.95),
        latency_section(contenders),
        timeline_section(contenders),
        fairness_section(contenders),
    ]
    origin = Origin("burrstone sim run --policy 'vtc > slo'", [1, 2, 3], {"engine": "256 sequences"})
    return page("Two policies", "vtc > slo did better", sections, origin)


class Tags(HTMLParser):
    """What a page refers to, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_asks_the_network_for_nothing() -> None:
    html = report("fcfs", "vtc > slo")
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert [link for link in tags.links if not link.startswith("data:")] == []
    assert not re.search(r"https?://|//\w|@import|url\(|<script", html)


def test_the_report_says_how_it_was_made_and_escapes_what_it_is_given() -> None:
    html = report("fcfs", "<b>vtc</b>")
    assert "burrstone sim run --policy &#x27;vtc &gt; slo&#x27;" in html
    assert "<dt>seeds</dt><dd>1, 2, 3</dd>" in html
    assert "<b>vtc" not in html


def test_the_table_names_the_policy_that_does_best() -> None:
    best = re.search(r'<tr class="best"><td class="word">(.*?)</td><td>(.*?)</td>', report("fcfs", "slo"))
    assert best is not None
    assert best.groups() == ("fcfs", "96.7 %")


def test_a_distribution_ends_below_one_where_requests_never_finished() -> None:
    line = cdf("slo", floats(1, 2, 3, np.inf))
    assert line.x.tolist() == [1, 2, 3]
    assert line.y.tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("size", [1, 2, 29, 5000])
def test_a_distribution_of_what_all_finished_ends_at_one(size: int) -> None:
    line = cdf("slo", floats(*range(1, size + 1)))
    assert (line.x[-1], line.y[-1]) == (size, 1.0)


def test_a_line_is_where_its_values_are() -> None:
    svg = chart([Series("a", floats(0, 10), floats(0, 1))], Axis("x"), Axis("y", low=0.0, high=1.0))
    path = re.search(r'class="line s0" d="(.*?)"', svg)
    assert path is not None
    # Plot area: 50..408 across, 230 (bottom)..10 (top).
    assert path[1] == "M50.0 230.0L408.0 10.0"


def test_an_empty_chart_says_so() -> None:
    assert "no data" in chart([Series("a", floats(np.inf), floats(np.nan))], Axis("x", log=True), Axis("y"))


values = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=20)


@given(values, st.booleans(), st.booleans(), st.booleans())
def test_any_values_give_a_drawing_within_its_frame(drawn: list[float], log: bool, steps: bool, goal: bool) -> None:
    y = np.array(drawn, dtype=np.float64)
    x = np.arange(1, len(y) + 1).astype(np.float64)
    y_axis = Axis("y", log=log, goal=1.0 if goal else None)
    svg = chart([Series("a", x, y, y, y, steps=steps, dots=True)], Axis("x"), y_axis)
    root = ElementTree.fromstring(svg)
    for text in root.iter("text"):
        assert "nan" not in (text.text or "") and "inf" not in (text.text or "")
    for dot in root.iter("circle"):
        assert 50 <= float(dot.attrib["cx"]) <= 408
        assert 10 <= float(dot.attrib["cy"]) <= 230


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (2.5e6, "2.5 M"),
        (7e9, "7 G"),
        (np.inf, "-"),
    ],
)
def test_numbers_are_read_without_counting_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_seconds_line_up() -> None:
    assert [seconds(value) for value in (0.0305, 9.5, 12.34, 1234.5, np.inf)] == [
        "0.030",
        "9.500",
        "12.3",
        "1,234.5",
        "-",
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium to open the report in a browser")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_complaint(tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    (tmp_path / "report.html").write_text(report("fcfs", "vtc > slo"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/home",
    ]
    shot = [f"--window-size={width},1000", f"--screenshot={tmp_path}/shot.png", str(tmp_path / "report.html")]
    done = subprocess.run([CHROMIUM, *flags, *shot], check=True, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "shot.png").stat().st_size > 10_000
