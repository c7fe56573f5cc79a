"""The figures in docs/quantization.md are those of the newest run that is kept."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPARE = ROOT / "tests" / "quant" / "oracle" / "compare.py"


def newest() -> Path:
    return max((ROOT / "bench" / "results").glob("quantization-*.json"))


def test_the_table_is_that_of_the_file() -> None:
    _, _, rest = (ROOT / "docs" / "quantization.md").read_text().partition("<!-- figures -->\n")
    shown, mark, _ = rest.partition("<!-- /figures -->")
    command = [sys.executable, str(COMPARE), "--table", str(newest())]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert mark and shown.strip() == table.strip()


def test_the_embedded_model_meets_its_bar() -> None:
    rows = {
        (row["method"], row["by"]): row for row in json.loads(newest().read_text())["rows"] if "smollm2" in row["model"]
    }
    ours, theirs = rows["smoothquant+gptq", "burrstone"], rows["smoothquant+gptq", "llm-compressor"]
    assert ours["perplexity_ratio"] <= 1.02 and ours["mean_kl"] <= 0.02 and ours["verdict"] == "pass"
    # No worse than the other quantizer; a fifth is the noise between rows of this number.
    assert ours["mean_kl"] <= 1.2 * theirs["mean_kl"]
