"""The Tokens tab of locust's page: a table by tenant, below it curves and what is to be said of the client; the same as JSON
under /tokens.json."""

import json
from importlib.resources import files
from typing import Any

from flask import Response, jsonify, request
from locust.web import WebUI

from burrstone.bench.swarm.session import Session

# Key of a row -> its column's title.
_COLUMNS = {
    "tenant": "Tenant",
    "offered": "Offered",
    "failed": "Failed",
    "attainment": "Within SLOs",
    "goodput_rps": "Goodput/s",
    "output_throughput": "Tokens/s",
    "ttft": "TTFT p50 / p95 / p99 (ms)",
    "itl": "ITL p50 / p95 / p99 (ms)",
    "tpot": "TPOT p50 / p95 / p99 (ms)",
    "e2el": "E2E p50 / p95 / p99 (ms)",
    "lateness_p99_ms": "Sent late p99 (ms)",
}
_KEY = "tokens"
_SCRIPT = '<script src="./tokens.js"></script></body>'


def add_tokens_tab(page: WebUI, session: Session) -> None:
    """Locust's own tabs stay as they are."""
    app = page.app
    if app is None:
        return
    structure = [{"key": key, "title": title} for key, title in _COLUMNS.items()]
    page.template_args |= {
        "extended_tabs": [{"title": "Tokens", "key": _KEY}],
        "extended_tables": [{"key": _KEY, "structure": structure}],
        "extended_csv_files": [{"href": "./tokens.json", "title": "Download token figures (JSON)"}],
    }
    base = page.environment.parsed_options.web_base_path if page.environment.parsed_options else ""

    fill = page.update_template_args

    def fill_without_secrets() -> None:
        """The command line's keys are not for everybody who can see the page. The session goes on using them."""
        fill()
        for option in page.template_args["extra_options"].values():
            if option["is_secret"]:
                option["default_value"] = None

    page.update_template_args = fill_without_secrets

    @app.route(f"{base}/tokens.json")
    @page.auth_required_if_enabled
    def tokens() -> Response:
        return jsonify(session.summary() | {"history": session.ledger.history})

    @app.route(f"{base}/tokens.js")
    def script() -> Response:
        source = files("burrstone.bench.swarm").joinpath("tokens.js").read_text()
        return Response(source, mimetype="application/javascript")

    @app.after_request
    def extend(response: Response) -> Response:
        if response.status_code == 200 and request.path == f"{base}/stats/requests":
            rows = table_rows(session.summary())
            found = {**(response.json or {}), "extended_stats": [{"key": _KEY, "data": rows}]}
            response.set_data(json.dumps(found))
        elif response.status_code == 200 and request.path in (base, f"{base}/"):
            response.set_data(response.get_data(as_text=True).replace("</body>", _SCRIPT))
        return response


def table_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a tenant, and one of all where there are several."""
    rows = [_row(name, tally) for name, tally in summary["tenants"].items()]
    if len(rows) > 1:
        rows.append(_row("all", summary))
    return rows


def _row(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    attainment = figures["slo_attainment"]
    return {
        "tenant": name,
        "offered": figures["offered"],
        "failed": figures["failed"],
        "attainment": "-" if attainment is None else f"{attainment:.1%}",
        "goodput_rps": f"{figures['goodput_rps']:.2f}",
        "output_throughput": f"{figures['output_throughput']:.1f}",
        "lateness_p99_ms": f"{figures['lateness_p99_ms']:.2f}",
    } | {figure: _spread(figures, figure) for figure in ("ttft", "itl", "tpot", "e2el")}


def _spread(figures: dict[str, Any], name: str) -> str:
    values = [figures[f"p{percentile}_{name}_ms"] for percentile in (50, 95, 99)]
    return "-" if None in values else " / ".join(f"{value:.1f}" for value in values)
