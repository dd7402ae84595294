"""Quality against network evaluations and seconds, from evaluations of the same pictures with different settings.

ddrm-jpeg evaluate FOLDER --output RESULTS/fast --preset fast       # and so on for every preset
python scripts/compare_presets.py RESULTS/fast RESULTS/balanced ... [--output docs/presets]

Each evaluation is a row, named after its folder; its single samples are a row of their own where it is the paper's.
Writes OUTPUT.md with the table, and the plot as OUTPUT.png and OUTPUT.svg.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pipeline_ddrm_jpeg import PRESETS
from pipeline_ddrm_jpeg.evaluation import AVERAGE, JPEG, SINGLE
from pipeline_ddrm_jpeg.restoration import write_atomically

METRICS = {"psnr": "PSNR", "ssimulacra2": "SSIMULACRA2"}


def gains(folder: Path) -> dict[str, dict]:
    """For each settings in an evaluation: network evaluations, seconds, and gains over JPEG by quality factor."""
    record = json.loads((folder / "evaluation.json").read_text())
    rows = record["rows"]
    settings = {name: value for name, value in record["protocol"]["settings"].items() if name != "correction"}
    chosen = {folder.name: AVERAGE if any(row["method"] == AVERAGE for row in rows) else SINGLE}
    if settings == PRESETS["paper-average"]:
        chosen = {"paper": SINGLE, "paper-average": AVERAGE}
    jpeg = {(row["dataset"], row["quality_factor"]): row["metrics"] for row in rows if row["method"] == JPEG}
    found = {}
    for name, method in chosen.items():
        ours = [row for row in rows if row["method"] == method]
        found[name] = {
            "network_evaluations": ours[0]["network_evaluations"],
            "seconds": sum(row["seconds"] for row in ours) / len(ours),
            "images": sum(row["images"] for row in ours if row["quality_factor"] == ours[0]["quality_factor"]),
            "dtype": record["dtype"],
        }
        for factor in dict.fromkeys(row["quality_factor"] for row in ours):
            group = [row for row in ours if row["quality_factor"] == factor]
            total = sum(row["images"] for row in group)
            for metric in METRICS:
                of_sets = (
                    row["images"] * (row["metrics"][metric] - jpeg[row["dataset"], factor][metric]) for row in group
                )
                found[name][factor, metric] = sum(of_sets) / total
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders that ddrm-jpeg evaluate wrote")
    parser.add_argument("--output", type=Path, default=Path("docs/presets"), help="without suffix")
    arguments = parser.parse_args()
    rows = {name: row for folder in arguments.results for name, row in gains(folder).items()}
    factors = sorted({key[0] for row in rows.values() for key in row if isinstance(key, tuple)})

    heads = [f"QF {factor} {label}" for factor in factors for label in METRICS.values()]
    lines = ["| Preset | network evaluations | seconds | " + " | ".join(heads) + " |"]
    lines.append("|---|---:|---:|" + "---:|" * len(heads))
    for name, row in rows.items():
        cells = [f"{row[factor, metric]:+.{2 if metric == 'psnr' else 1}f}" for factor in factors for metric in METRICS]
        lines.append(
            f"| {name} | {row['network_evaluations']:.0f} | {row['seconds']:.1f} | " + " | ".join(cells) + " |"
        )

    figure, axes = plt.subplots(len(METRICS), len(factors), figsize=(4 * len(factors), 6), layout="constrained")
    for axes_row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for axis, factor in zip(axes_row, factors, strict=True):
            for name, row in rows.items():
                point = (row["network_evaluations"], row[factor, metric])
                axis.plot(*point, "s" if name.startswith("paper") else "o", color="tab:blue")
                axis.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
            axis.set(xscale="log", xlabel="network evaluations", ylabel=f"gain in {label}", title=f"QF {factor}")
            axis.margins(x=0.45, y=0.15)
            axis.grid(alpha=0.3)
    for suffix in (".png", ".svg"):
        figure.savefig(
            arguments.output.with_suffix(suffix), dpi=100, metadata={"Date": None} if suffix == ".svg" else None
        )

    first = next(iter(rows.values()))
    text = f"""# Presets

Gain over the JPEG file, the mean over {first["images"]} pictures, and the seconds a picture of 256 x 256 takes on one
thread in {first["dtype"]}, as `scripts/compare_presets.py` prints them from the results of `ddrm-jpeg evaluate`:

{chr(10).join(lines)}

![quality against network evaluations]({arguments.output.name}.png)

`fast`, `balanced` and `best` start where the file's own tables say (`init_timestep="auto"`), step more densely where
there is little noise (`timestep_spacing="log"`), and end in a projection onto the file (`consistent`). `fast` draws
one sample with less noise than the prior expects (`temperature`), which leaves out detail a single sample would have to
guess. The two others average samples in pairs with opposite noise (`antithetic`), so that part of it cancels.

How the settings were chosen: some sixty were tried on 12 to 16 crops of 128 x 128 from evaluation pictures, by a search
that is not in this repository. The sets of the table overlap with those, so its lead over the paper's settings may be a
little flattered. The seconds were taken on one core while the other was busy.
"""
    target = arguments.output.with_suffix(".md")
    write_atomically(target, lambda stream: stream.write(text.encode()))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
