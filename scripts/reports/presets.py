"""Quality against network evaluations and seconds, from evaluations of the same pictures with different presets.

ddrm-jpeg evaluate FOLDER --output RESULTS/fast --preset fast       # and so on for every preset
python scripts/reports/presets.py RESULTS/fast RESULTS/balanced ... [--output docs/presets]

Each evaluation is a row; the single samples of paper-average are the row of paper. Writes OUTPUT.md with the table, and
the plot as OUTPUT.png and OUTPUT.svg.
"""

import argparse
from pathlib import Path

import matplotlib
from common import ROOT, evaluation, prior_line, save, write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pipeline_ddrm_jpeg.evaluation.metrics import COLUMNS
from pipeline_ddrm_jpeg.evaluation.protocol import AVERAGE, JPEG, SINGLE
from pipeline_ddrm_jpeg.evaluation.tables import groups, markdown

SHOWN = ("psnr", "ssimulacra2")


def gains(folder: Path) -> dict[str, dict]:
    """For each preset in an evaluation: network evaluations, seconds, and gains over JPEG by quality factor."""
    record = evaluation(folder)
    rows, preset = record["rows"], record["protocol"]["preset"] or folder.name
    chosen = {preset: AVERAGE if any(row["method"] == AVERAGE for row in rows) else SINGLE}
    if preset == "paper-average":
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
            "prior_sha256": record["prior_sha256"],
        }
        for (factor,), group in groups(ours, "quality_factor").items():
            total = sum(row["images"] for row in group)
            for metric in SHOWN:
                of_sets = (
                    row["images"] * (row["metrics"][metric] - jpeg[row["dataset"], factor][metric]) for row in group
                )
                found[name][factor, metric] = sum(of_sets) / total
    return found


def factors_of(rows: dict[str, dict]) -> list[int]:
    return sorted({key[0] for row in rows.values() for key in row if isinstance(key, tuple)})


def gain_table(rows: dict[str, dict]) -> str:
    """What `gains` found, a line for each preset."""
    columns = [(factor, metric) for factor in factors_of(rows) for metric in SHOWN]
    heads = [f"QF {factor} {COLUMNS[metric].label}" for factor, metric in columns]
    lines = [["Preset", "network evaluations", "seconds", *heads]]
    for name, row in rows.items():
        cells = [f"{row[column]:+.{COLUMNS[column[1]].decimals}f}" for column in columns]
        lines.append([name, f"{row['network_evaluations']:.0f}", f"{row['seconds']:.1f}", *cells])
    return markdown(lines)


def make(folders: list[Path], output: Path) -> None:
    rows = {name: row for folder in folders for name, row in gains(folder).items()}
    factors = factors_of(rows)
    table = gain_table(rows)
    print(table)

    figure, axes = plt.subplots(len(SHOWN), len(factors), figsize=(4 * len(factors), 6), layout="constrained")
    for axes_row, metric in zip(axes, SHOWN, strict=True):
        for axis, factor in zip(axes_row, factors, strict=True):
            for name, row in rows.items():
                point = (row["network_evaluations"], row[factor, metric])
                axis.plot(*point, "s" if name.startswith("paper") else "o", color="tab:blue")
                axis.annotate(name, point, (0, -7), textcoords="offset points", fontsize=8, ha="center", va="top")
            axis.set(
                xscale="log",
                xlabel="network evaluations",
                ylabel=f"gain in {COLUMNS[metric].label}",
                title=f"QF {factor}",
            )
            counts = [row["network_evaluations"] for row in rows.values()]
            axis.set_xticks(counts, [f"{count:.0f}" for count in counts])
            axis.minorticks_off()
            axis.margins(x=0.2, y=0.2)
            axis.grid(alpha=0.3)
    save(figure, output)

    first = next(iter(rows.values()))
    text = f"""# Presets

Gain over the JPEG file, the mean over {first["images"]} pictures, and the seconds a picture of 256 x 256 takes on one
thread in {first["dtype"]}, as `scripts/reports/presets.py` prints them from the results of `ddrm-jpeg evaluate`:

{table}

![quality against network evaluations]({output.name}.png)

`fast`, `balanced` and `best` correct with the posterior mean and account for its noise, show the prior another view at
every step, start where the file's own tables say, space their steps by noise, and end in a projection onto the file.
What each of these is worth is in [corrections.md](corrections.md). `fast` and `balanced` are one sample of two and of
four evaluations; `best` is the mean of two of six with opposite noise. All three stand at the end of least distortion;
`sharpness` leads to the other.

How the settings were chosen: on crops of `mcmaster18` and `live1`, which are among the sets of the table, and on the
prior's own training pictures; no other set was looked at.

{prior_line(first["prior_sha256"])}"""
    write(output.with_suffix(".md"), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders that ddrm-jpeg evaluate wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "presets", help="without suffix")
    arguments = parser.parse_args()
    make(arguments.results, arguments.output)


if __name__ == "__main__":
    main()
