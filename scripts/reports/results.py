"""Gather evaluations into docs/results.md, for people, and docs/results.json, for the model card.

ddrm-jpeg evaluate FOLDER... --output RESULTS [options]
python scripts/reports/results.py [RESULTS...] [--output docs/results]

Without RESULTS the page is written anew from docs/results.json.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

from common import ROOT, evaluation, page_of, write

from pipeline_ddrm_jpeg.evaluation.protocol import JPEG, SINGLE
from pipeline_ddrm_jpeg.evaluation.tables import evaluation_tables, groups, markdown

# PSNR on the luma of LIVE1 at full size, as the figures of their authors' repositories give it.
PUBLISHED_AT = (10, 20, 30, 40)
PUBLISHED_JPEG = (27.77, 30.07, 31.41, 32.35)
_SWINIR = "[SwinIR](https://github.com/JingyunLiang/SwinIR), a network for each factor, published"
PUBLISHED = {
    "[FBCNN](https://github.com/jiaxi-jiang/FBCNN), published": (29.75, 32.13, 33.54, 34.53),
    _SWINIR: (29.86, 32.25, 33.69, 34.67),
}
# Name, whether it was trained on JPEG, whether its results agree with the file.
RUN_HERE = {
    "waifu2x": ("[waifu2x](https://github.com/nagadomi/waifu2x), run here", "yes", "no"),
    "jpegqs": ("[jpegqs](https://github.com/ilyakurdyukov/jpeg-quantsmooth), run here", "no network", "yes"),
    SINGLE: ("ours, run here", "no", "yes"),
}


def command(record: dict[str, Any]) -> str:
    """The command of an evaluation, from its settings; for paths, the names of the sets."""
    protocol, settings = record["protocol"], record["protocol"]["settings"]
    sets = dict.fromkeys(row["dataset"] for row in record["rows"])
    words = ["ddrm-jpeg evaluate", *sets, "--output RESULTS"]
    words.append("--quality " + ",".join(map(str, protocol["quality_factors"])))
    words.append(f"--convention {protocol['convention']} --subsampling {protocol['chroma_subsampling']}")
    if protocol["preset"]:
        words.append(f"--preset {protocol['preset']}")
    else:
        words += ["with", ", ".join(f"{name} {value}" for name, value in settings.items())]
    words += [f"--baseline {name}" for name in protocol["baselines"]]
    words.append(f"--dtype {record['dtype']}")
    return " ".join(words)


def peers(rows: list[dict[str, Any]]) -> str:
    """What trained networks are published to gain over JPEG files, and what those gain that were run here."""
    lines = [["", "trained on JPEG", "agrees with the file", *(f"QF {factor}" for factor in PUBLISHED_AT)]]
    for name, psnr in PUBLISHED.items():
        lines.append([name, "yes", "no", *(f"{a - b:+.2f}" for a, b in zip(psnr, PUBLISHED_JPEG, strict=True))])
    here: dict[str, dict[int, float]] = {}
    for row in rows:
        if (row["dataset"], row["convention"], row["chroma_subsampling"]) == ("live1", "libjpeg", "4:2:0"):
            here.setdefault(row["method"], {}).setdefault(row["quality_factor"], row["metrics"]["psnr"])
    for method, names in RUN_HERE.items():
        if method in here:
            gains = (f"{here[method][at] - here[JPEG][at]:+.2f}" if at in here[method] else "" for at in PUBLISHED_AT)
            lines.append([*names, *gains])
    return markdown(lines)


def made_worse(means: list[dict[str, Any]]) -> str:
    """How many images each method made worse, and where our samples gain least, for each kind of file."""
    methods = list(dict.fromkeys(mean["method"] for mean in means if mean["method"] != JPEG))
    rows = [["convention", "subsampling", "QF", "images", *methods, f"least gain, {SINGLE}", "of"]]
    for (*kind, factor), group in groups(means, "convention", "chroma_subsampling", "quality_factor").items():
        own = {name: [mean for mean in group if mean["method"] == name] for name in methods}
        counts = [str(sum(mean["made_worse"] for mean in each)) if each else "" for each in own.values()]
        least = min(own[SINGLE], key=lambda mean: mean["least_gain"])
        rows.append([*kind, str(factor), str(sum(mean["images"] for mean in own[SINGLE])), *counts])
        rows[-1] += [f"{least['least_gain']:+.2f}", f"{least['dataset']}/{least['least_gain_image']}"]
    return markdown(rows)


def make(folders: list[Path], output: Path) -> None:
    gathered = {"command": [], "versions": None, "commit": [], "row_counts": [], "notes": [], "rows": []}
    for folder in folders:
        record = evaluation(folder)
        gathered["command"].append(command(record))
        gathered["versions"] = record["versions"]
        gathered["commit"].append(record["commit"])
        gathered["row_counts"].append(len(record["rows"]))
        gathered["notes"].append(record["notes"])
        gathered["prior_sha256"] = record["prior_sha256"]
        made_with = {name: record["protocol"][name] for name in ("preset", "settings")}
        gathered["rows"] += [row | made_with for row in record["rows"]]
    write(output.with_suffix(".json"), json.dumps(gathered, indent=1) + "\n")
    write(output.with_suffix(".md"), as_page(gathered))


def as_page(gathered: dict[str, Any]) -> str:
    """What `docs/results.json` holds as Markdown: `row_counts` of its rows are of the `command` at the same place."""
    rows, parts = iter(gathered["rows"]), []
    for line, count, notes in zip(gathered["command"], gathered["row_counts"], gathered["notes"], strict=True):
        parts.append(f"```sh\n{line}\n```\n\n{evaluation_tables(list(islice(rows, count)), notes)}")
    return page_of(
        "results",
        gathered["prior_sha256"],
        peers=peers(gathered["rows"]),
        measured="\n".join(parts),
        made_worse=made_worse(gathered["rows"]),
        versions=", ".join(f"{name} {version}" for name, version in gathered["versions"].items()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="folders that ddrm-jpeg evaluate wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results", help="without suffix")
    arguments = parser.parse_args()
    if arguments.results:
        make(arguments.results, arguments.output)
    else:
        gathered = json.loads(arguments.output.with_suffix(".json").read_text("utf-8"))
        write(arguments.output.with_suffix(".md"), as_page(gathered))


if __name__ == "__main__":
    main()
