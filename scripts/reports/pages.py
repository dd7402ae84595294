"""Fill in what `model_card.md` and `README.md` say with numbers: results, settings, the prior and its training data.

python scripts/reports/pages.py            # from docs/results.json
python scripts/reports/pages.py --check    # changes nothing; exit status 1 if a page is out of date
"""

import argparse
import json
import sys
from pathlib import Path

from common import DATASETS, ROOT, fill, write
from huggingface_hub import EvalResult, ModelCard

from pipeline_ddrm_jpeg.evaluation.metrics import COLUMNS
from pipeline_ddrm_jpeg.evaluation.protocol import AVERAGE, JPEG, SINGLE
from pipeline_ddrm_jpeg.evaluation.tables import CONDITIONS, best_in_bold, groups, markdown, shown
from pipeline_ddrm_jpeg.sampling.settings import ABOUT, PRESETS

PRIOR = ROOT / "pipeline_ddrm_jpeg" / "prior" / "README.md"
METRICS = ("psnr", "psnr_b", "ssim", "ssimulacra2", "lpips")
_OF_THE_PAPER = (5, 10, 30)
README_FACTORS = (5, 10, 20, 40, 75, 92)
CONVENTIONS = {"libjpeg": "files written by libjpeg", "released": "JPEG as the paper's program simulates it"}
QUICK_START = """```sh
pip install diffusers accelerate jpeglib
```

```python
import torch
from diffusers import DiffusionPipeline

# the name of this repo, or a folder that holds a copy of it
pipe = DiffusionPipeline.from_pretrained(REPO, trust_remote_code=True)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
result = pipe("photo.jpg")
result.images[0].save("photo.png")
```"""


def card(old: str, results: dict, prior: str) -> str:
    """`model_card.md` with everything between its markers made anew.

    Args:
        old: its text.
        results: what `docs/results.json` holds.
        prior: text of the page of the embedded prior.
    """
    parts = {
        "quick start": QUICK_START,
        "presets": presets(),
        "results": tables(results),
        "prior": ModelCard(prior).text.partition("\n\n")[2].strip().replace("\n## ", "\n### "),
    }
    for name, text in parts.items():
        old = fill(old, name, text)
    page = ModelCard(old)
    page.data.model_name = "DDRM-JPEG"
    page.data.eval_results = evaluations(results)
    return f"---\n{page.data.to_yaml()}\n---\n{page.text.lstrip()}"


def readme(old: str, results: dict) -> str:
    """`README.md` with its table made anew: what is gained over the files of the first set."""
    (dataset, *_), rows = next(iter(groups(results["rows"], *CONDITIONS).items()))
    best = ours(rows)
    methods = [method for method in (JPEG, "waifu2x", best) if any(row["method"] == method for row in rows)]
    heads = ["ours" if method == best else method for method in methods]
    lines = [["quality factor", *(f"PSNR, {head}" for head in heads), *(f"SSIMULACRA2, {head}" for head in heads)]]
    for (factor,), group in groups(rows, "quality_factor").items():
        if factor in README_FACTORS:
            found = {row["method"]: row["metrics"] for row in group}
            jpeg, *others = (found[method]["psnr"] for method in methods)
            cells = [shown("psnr", jpeg), *(f"{value - jpeg:+.2f}" for value in others)]
            cells += [shown("ssimulacra2", found[method]["ssimulacra2"]) for method in methods]
            lines.append([str(factor), *cells])
    made = [row for row in rows if row["method"] == best]
    seconds = sum(row["seconds"] for row in made) / len(made)
    files = [row for row in results["rows"] if row["method"] == best and row["convention"] == "libjpeg"]
    factors = [row["quality_factor"] for row in files]
    worse, count = (sum(row[name] for row in files) for name in ("made_worse", "images"))
    images, preset = made[0]["images"], made[0]["preset"]
    text = f"""{images} images of {DATASETS.get(dataset, dataset)}, 256 x 256 pixels, preset `{preset}`.
PSNR is in dB: first that of the JPEG, then the gain over it. SSIMULACRA2 judges what people see; more is better.

{markdown(lines)}

Of the {count} files of all test sets, quality factors {min(factors)} to {max(factors)}, **{worse} came out with a
lower PSNR than the JPEG**. One image took {seconds:.1f} s on one processor core."""
    return fill(old, "results", text)


def ours(rows: list[dict]) -> str:
    """The method of our result: the average, where there was more than one sample."""
    return AVERAGE if any(row["method"] == AVERAGE for row in rows) else SINGLE


def presets() -> str:
    """A row for each setting: what it does, its range, and its value in each preset."""
    rows = [["", "what it does", "range", *PRESETS]]
    for name, about in ABOUT.items():
        values = (settings[name] for settings in PRESETS.values())
        cells = [f"`{value}`" if value is not None else about.unset for value in values]
        rows.append([f"`{name}`", about.words, about.range, *cells])
    return markdown(rows)


def tables(results: dict) -> str:
    """A table for every set and convention, one row for each quality factor and method; all but the first folded."""
    parts = []
    for (dataset, convention, subsampling), rows in groups(results["rows"], *CONDITIONS).items():
        counts = " or ".join(map(str, sorted({row["images"] for row in rows})))
        title = f"**{DATASETS.get(dataset, dataset)}**, {counts} images, {CONVENTIONS[convention]}, {subsampling}:"
        parts.append(f"{title}\n\n{results_table(rows)}")
    first, *others = parts
    texts = [first]
    if others:
        texts.append("<details><summary>Other images and conventions</summary>")
        texts += [*others, "</details>"]
    texts.append("Made by\n\n```sh\n" + "\n".join(results["command"]) + "\n```")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    texts.append(f"with {versions}.")
    return "\n\n".join(texts)


def results_table(rows: list[dict]) -> str:
    """Quality factors and methods down, metrics across, the best of a quality factor in bold."""
    measured = [metric for metric in METRICS if any(row["metrics"].get(metric) is not None for row in rows)]
    lines = [["quality factor", "method", *(COLUMNS[metric].title for metric in measured)]]
    for (factor,), methods in groups(rows, "quality_factor").items():
        columns = [best_in_bold(metric, [row["metrics"].get(metric) for row in methods]) for metric in measured]
        for row, *values in zip(methods, *columns, strict=True):
            line = [str(factor), label(row), *values]
            if line not in lines:  # several evaluations measure the JPEG itself
                lines.append(line)
    return markdown(lines)


def label(row: dict) -> str:
    """The method, and the preset or settings of our own ones."""
    if row["method"] not in (SINGLE, AVERAGE):
        return row["method"]
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    return f"{row['method']}, {row['preset'] or settings}"


def evaluations(results: dict) -> list[EvalResult]:
    """Our results on real files of the usual subsampling, at the paper's quality factors, as metadata of the card."""
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="JPEG artifact correction",
            dataset_type=row["dataset"],
            dataset_name=f"{DATASETS.get(row['dataset'], row['dataset'])}, {row['images']} images",
            dataset_config=f"{row['convention']}, quality factor {row['quality_factor']}",
            metric_type=metric,
            metric_name=f"{COLUMNS[metric].title}, {label(row)}",
            metric_value=round(row["metrics"][metric], COLUMNS[metric].decimals),
        )
        for row in results["rows"]
        if row["method"] == ours(results["rows"]) and row["quality_factor"] in _OF_THE_PAPER
        if (row["convention"], row["chroma_subsampling"]) == ("libjpeg", "4:2:0")
        for metric in METRICS
        if row["metrics"].get(metric) is not None
    ]


def make(root: Path) -> dict[Path, str]:
    """The pages of a checkout as they should be, from its `docs/results.json`."""
    results = json.loads((root / "docs" / "results.json").read_text("utf-8"))
    pages = {root / "model_card.md": lambda old: card(old, results, PRIOR.read_text("utf-8"))}
    pages[root / "README.md"] = lambda old: readme(old, results)
    return {path: change(path.read_text("utf-8")) for path, change in pages.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a page is out of date")
    arguments = parser.parse_args()
    for path, text in make(ROOT).items():
        if not arguments.check:
            write(path, text)
        elif path.read_text("utf-8") != text:
            sys.exit(f"{path.name} is out of date; run: make card")


if __name__ == "__main__":
    main()
