"""Fill in what `model_card.md` says with numbers: results, settings, the prior and its training data.

python scripts/update_model_card.py            # from docs/results.json, if it is there
python scripts/update_model_card.py --check    # changes nothing; exit status 1 if the card is out of date
"""

import argparse
import json
import re
import sys
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from pipeline_ddrm_jpeg import PRESETS
from pipeline_ddrm_jpeg.evaluation import AVERAGE

ROOT = Path(__file__).parent.parent
CARD = ROOT / "model_card.md"
RESULTS = ROOT / "docs" / "results.json"
PRIOR = ROOT / "pipeline_ddrm_jpeg" / "prior" / "README.md"

# Name, decimals, and whether more is better, of each metric that is shown.
METRICS = {
    "psnr": ("PSNR (dB)", 2, True),
    "psnr_b": ("PSNR-B (dB)", 2, True),
    "ssim": ("SSIM", 3, True),
    "ssimulacra2": ("SSIMULACRA 2", 1, True),
    "lpips": ("LPIPS", 3, False),
}
DATASETS = {
    "imagenet": "ImageNet validation",
    "kodak24": "Kodak",
    "cid22val": "CID22 validation",
    "live1": "LIVE release 1",
    "mcmaster18": "McMaster",
}
OPERATORS = {"libjpeg": "files written by libjpeg", "paper": "JPEG as the paper's program simulates it"}
QUICK_START = """```
pip install diffusers accelerate jpeglib
```

```python
import torch
from diffusers import DiffusionPipeline

# REPO is the name of this repo, or a folder that holds a copy of it.
pipe = DiffusionPipeline.from_pretrained(REPO, trust_remote_code=True)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
result = pipe(
    "photo.jpg",
    {settings},
)
result.images[0].save("photo.png")
```"""


def fill(card: str, results: dict | None, prior: str) -> str:
    """The text of the card with everything between its markers made anew.

    Args:
        card: text of `model_card.md`.
        results: what `docs/results.json` holds, or None while there is none.
        prior: text of the page of the embedded prior.
    """
    settings = ",\n    ".join(f"{name}={literal(value)}" for name, value in PRESETS["balanced"].items())
    parts = {
        "quick start": QUICK_START.format(settings=settings),
        "presets": presets(),
        "results": tables(results),
        "prior": ModelCard(prior).text.partition("\n\n")[2].strip().replace("\n## ", "\n### "),
    }
    for name, text in parts.items():
        start, end = f"<!-- {name}: made by scripts/update_model_card.py -->", f"<!-- /{name} -->"
        before, _, rest = card.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"the card lacks the markers {start} and {end}")
        card = f"{before}{start}\n{text}\n{end}{after}"
    page = ModelCard(card)
    page.data.model_name = "DDRM-JPEG" if results else None
    page.data.eval_results = evaluations(results) or None
    return f"---\n{page.data.to_yaml()}\n---\n{page.text.lstrip()}"


def presets() -> str:
    """A row for each argument, a column for each preset."""
    names = dict.fromkeys(name for settings in PRESETS.values() for name in settings)
    rows = [["", *PRESETS]]
    for name in names:
        values = (f"`{literal(settings[name])}`" if name in settings else "" for settings in PRESETS.values())
        rows.append([f"`{name}`", *values])
    return table(rows)


def literal(value: object) -> str:
    """A value as our code writes it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def tables(results: dict | None) -> str:
    """A table for every dataset and operator, one row for each quality factor and method; all but the first folded."""
    if not results:
        return "They follow from `docs/results.json`, which the evaluation writes and which is not there yet."
    parts = []
    for (dataset, operator), rows in groups(results["rows"], "dataset", "operator").items():
        title = f"**{DATASETS.get(dataset, dataset)}**, {pictures(rows)}, {OPERATORS.get(operator, operator)}:"
        parts.append(f"{title}\n\n{results_table(rows)}")
    first, *others = parts
    texts = [first]
    if others:
        texts.append("<details><summary>Other pictures and operators</summary>")
        texts += [*others, "</details>"]
    texts.append("Made by\n\n```\n" + "\n".join(results["command"]) + "\n```")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    texts.append(f"with {versions}.")
    return "\n\n".join(texts)


def results_table(rows: list[dict]) -> str:
    """Quality factors and methods down, metrics across, the best of a quality factor in bold."""
    shown = [metric for metric in METRICS if any(row["metrics"].get(metric) is not None for row in rows)]
    lines = [["quality factor", "method", *(METRICS[metric][0] for metric in shown)]]
    for methods in groups(rows, "quality_factor").values():
        best = {metric: best_of(metric, methods) for metric in shown}
        for row in methods:
            values = [cell(metric, row["metrics"], best[metric]) for metric in shown]
            line = [str(row["quality_factor"]), label(row), *values]
            if line not in lines:  # several evaluations measure the JPEG itself
                lines.append(line)
    return table(lines)


def label(row: dict) -> str:
    """The method, and the preset or settings of our own ones."""
    settings = {name: value for name, value in row["settings"].items() if (name, value) != ("correction", "ddrm")}
    if not row["method"].startswith("Ours") or not settings:
        return row["method"]
    named = [name for name, preset in PRESETS.items() if preset == settings]
    return f"{row['method']}, {named[0] if named else ', '.join(f'{k} {v}' for k, v in settings.items())}"


def pictures(rows: list[dict]) -> str:
    counts = sorted({row["images"] for row in rows})
    return f"{' or '.join(map(str, counts))} pictures"


def groups(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Rows by the values of some keys, in the order of first appearance."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def best_of(metric: str, rows: list[dict]) -> str:
    """The best value of a metric as it is printed, so that equals are equal."""
    values = [row["metrics"][metric] for row in rows if row["metrics"].get(metric) is not None]
    return cell(metric, {metric: (max if METRICS[metric][2] else min)(values)} if values else {})


def cell(metric: str, metrics: dict, best: str | None = None) -> str:
    if metrics.get(metric) is None:
        return ""
    text = f"{metrics[metric]:.{METRICS[metric][1]}f}"
    return f"**{text}**" if text == best else text


def table(rows: list[list[str]]) -> str:
    """Rows of cells as Markdown, the first one the heading; columns of numbers lean to the right."""
    numeric = [all(re.fullmatch(r"[*\d.-]*", cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    rule = "|" + "|".join("---:" if is_numeric else "---" for is_numeric in numeric) + "|"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def evaluations(results: dict | None) -> list[EvalResult]:
    """The averages of real files as metadata of the card."""
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="JPEG artifact correction",
            dataset_type=row["dataset"],
            dataset_name=f"{DATASETS.get(row['dataset'], row['dataset'])}, {row['images']} pictures",
            dataset_config=f"{row['operator']}, quality factor {row['quality_factor']}",
            metric_type=metric,
            metric_name=f"{name}, {label(row)}",
            metric_value=round(row["metrics"][metric], decimals),
        )
        for row in (results or {}).get("rows", [])
        if row["method"] == AVERAGE and row["operator"] == "libjpeg"
        for metric, (name, decimals, _) in METRICS.items()
        if row["metrics"].get(metric) is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file of the evaluation")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the card is out of date")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text("utf-8")) if arguments.results.exists() else None
    old = CARD.read_text("utf-8")
    new = fill(old, results, PRIOR.read_text("utf-8"))
    if arguments.check:
        sys.exit(0 if new == old else f"{CARD.name} is out of date; run: make card")
    CARD.write_text(new, "utf-8")
    print(CARD)


if __name__ == "__main__":
    main()
