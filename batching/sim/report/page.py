"""The frame of a report: one HTML file that asks the network for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_CSS = """
:root{color-scheme:light dark;--ground:#fff;--card:#fff;--ink:#1b1f24;--soft:#59636e;--rule:#d8dee4;--goal:#b3261e;
--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#6e7781}
@media (prefers-color-scheme:dark){:root{--ground:#0d1117;--card:#151b23;--ink:#e6edf3;--soft:#9da7b3;--rule:#30363d;
--goal:#ff7b72;--c0:#58a6ff;--c1:#f0883e;--c2:#56d364;--c3:#bc8cff;--c4:#f778ba;--c5:#9da7b3}}
@media print{:root{color-scheme:light;--ground:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#bbb;--goal:#b3261e;
--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#6e7781}
main{max-width:none;padding:0}figure,tr{break-inside:avoid}h2{break-after:avoid}*{print-color-adjust:exact}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.5rem;line-height:1.25;margin:.4em 0}h2{font-size:1.15rem;margin:2em 0 .4em}
p{max-width:70ch;margin:.5em 0}.lead{font-size:1.1rem}.soft,figcaption small{color:var(--soft);font-size:.875rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--rule)}td{white-space:nowrap}
th{font-weight:600;color:var(--soft);vertical-align:bottom}th:first-child,td:first-child{text-align:left;
padding-left:2px;position:sticky;left:0;background:var(--ground)}.word{text-align:left}
tr.best td{font-weight:600}.bad{color:var(--goal)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:16px;margin:12px 0}
figure{margin:0;padding:10px;background:var(--card);border:1px solid var(--rule);border-radius:8px;min-width:0;max-width:620px}
figcaption{font-weight:600;font-size:.9375rem}figcaption small{display:block;font-weight:400}
figure>svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .x,svg .name{text-anchor:middle}svg .y{text-anchor:end}
svg .name{fill:var(--ink)}svg path.grid{stroke:var(--rule);stroke-width:.6;fill:none}
svg .frame{stroke:var(--soft);fill:none}svg .goal{stroke:var(--goal);stroke-dasharray:5 4;stroke-width:1.3;fill:none}
svg .line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}svg .dashed.line{stroke-dasharray:6 3}
svg .band{fill:currentColor;opacity:.15}svg .dot{fill:currentColor}
.s0{color:var(--c0)}.s1{color:var(--c1)}.s2{color:var(--c2)}.s3{color:var(--c3)}.s4{color:var(--c4)}.s5{color:var(--c5)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;padding:0;margin:6px 0;font-size:.875rem}
.legend .swatch{width:26px;height:8px;margin-right:6px}
.bar{display:inline-block;width:90px;height:9px;border-radius:2px;vertical-align:middle;margin-left:8px;
background:linear-gradient(to right,var(--c0) var(--share),var(--rule) 0)}
pre{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px;white-space:pre-wrap;
overflow-wrap:anywhere;font-size:.8125rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:.875rem;margin:.5em 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media print{.soft,.legend{break-after:avoid}pre{break-inside:avoid}
th:first-child,td:first-child{position:static;background:none}}
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report. `body` is HTML; `text` is plain and says how to read it."""

    title: str
    text: str
    body: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell's text with a bar beside it, full at share 1."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Origin:
    """How the figures came about: the exact command, its seeds, if any, and what they are of, by name."""

    command: str
    seeds: Sequence[int]
    facts: dict[str, str]
    text: str = "The same command and seeds give the same figures."


def page(title: str, lead: str, sections: Sequence[Section], origin: Origin) -> str:
    """The whole file."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body><main>",
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
    ]
    for section in (*sections, _origin(origin)):
        text = f'<p class="soft">{escape(section.text)}</p>' if section.text else ""
        parts.append(f"<section><h2>{escape(section.title)}</h2>{text}{section.body}</section>")
    return "".join([*parts, "</main></body></html>\n"])


def table(head: Sequence[str], rows: Sequence[Sequence[str | Bar]], best: int | None = None, words: int = 1) -> str:
    """An HTML table that scrolls sideways on a phone; row `best` stands out, the first `words` columns are no numbers."""
    kinds = [' class="word"' if index < words else "" for index in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = ""
    for index, row in enumerate(rows):
        mark = ' class="best"' if index == best else ""
        cells = "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        body += f"<tr{mark}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figures(drawn: Sequence[tuple[str, str, str]]) -> str:
    """Charts side by side where there is room, each (title, what it shows, its SVG)."""
    cells = [
        f"<figure><figcaption>{escape(title)}<small>{escape(text)}</small></figcaption>{svg}</figure>"
        for title, text, svg in drawn
    ]
    return f'<div class="grid">{"".join(cells)}</div>'


def _cell(cell: str | Bar) -> str:
    if isinstance(cell, str):
        return escape(cell)
    width = 100 * min(max(cell.share, 0.0), 1.0)
    return f'{escape(cell.text)}<span class="bar" style="--share:{width:.0f}%"></span>'


def _origin(origin: Origin) -> Section:
    seeds = {"seeds": ", ".join(str(seed) for seed in origin.seeds)} if origin.seeds else {}
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in (seeds | origin.facts).items()
    )
    body = f"<pre><code>{escape(origin.command)}</code></pre><dl>{items}</dl>"
    return Section("How to get these figures again", origin.text, body)
