"""Quality against network evaluations and seconds, from evaluations of the same images with different presets.

ddrm-jpeg evaluate FOLDER --output RESULTS/fast --preset fast       # and so on for every preset
python scripts/reports/presets.py RESULTS/fast RESULTS/balanced ... [--output docs/presets]

Each evaluation is a row; the single samples of paper-average are the row of paper, and a preset with another
`--sharpness` is named so. Writes OUTPUT.md with the table, and the plot as OUTPUT.png and OUTPUT.svg.
"""

import argparse
from pathlib import Path

import numpy as np
from common import ROOT, evaluation, page_of, save, text, write

from pipeline_ddrm_jpeg import PRESETS, Settings
from pipeline_ddrm_jpeg.evaluation.metrics import COLUMNS
from pipeline_ddrm_jpeg.evaluation.protocol import AVERAGE, JPEG, SINGLE
from pipeline_ddrm_jpeg.evaluation.tables import groups, markdown
from pipeline_ddrm_jpeg.extras import needs

with needs("eval"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

SHOWN = ("psnr", "ssimulacra2", "lpips")
_DIAL = ", sharpness"  # after the name of a preset


def gains(folder: Path) -> dict[str, dict]:
    """For each preset in an evaluation: network evaluations, seconds, and by quality factor how it compares to JPEG.

    That is the gain of a metric, and of LPIPS, where it was computed, the ratio of the means.
    """
    record = evaluation(folder)
    rows, preset = record["rows"], named(record["protocol"]) or folder.name
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
            both = [row["metrics"] for row in group], [jpeg[row["dataset"], factor] for row in group]
            counts = [row["images"] for row in group]
            for metric in SHOWN:
                if all(metric in metrics for metrics in both[0]):
                    mine, theirs = (np.average([one[metric] for one in each], weights=counts) for each in both)
                    found[name][factor, metric] = mine / theirs if metric == "lpips" else mine - theirs
    return found


def named(protocol: dict) -> str | None:
    """The preset of an evaluation, with the sharpness that it was given."""
    settings = Settings(**protocol["settings"])
    sharpness = settings.sharpness
    if protocol["preset"] or not sharpness:
        return protocol["preset"]
    plain = settings | {"sharpness": 0.0}
    return next((f"{name}{_DIAL} {sharpness:g}" for name in PRESETS if PRESETS[name] == plain), None)


def columns_of(rows: dict[str, dict]) -> list[tuple[int, str]]:
    """What all rows have, by quality factor and metric."""
    keys = [{key for key in row if isinstance(key, tuple)} for row in rows.values()]
    return sorted(set.intersection(*keys), key=lambda key: (key[0], SHOWN.index(key[1])))


def title(metric: str) -> str:
    return f"{COLUMNS[metric].label} / JPEG's" if metric == "lpips" else COLUMNS[metric].label


def gain_table(rows: dict[str, dict], metrics: tuple[str, ...] = SHOWN) -> str:
    """What `gains` found, a line for each preset."""
    columns = [key for key in columns_of(rows) if key[1] in metrics]
    lines = [["Preset", "network evaluations", "seconds", *(f"QF {factor} {title(m)}" for factor, m in columns)]]
    for name, row in rows.items():
        cells = [
            f"{row[key]:.2f}" if key[1] == "lpips" else f"{row[key]:+.{COLUMNS[key[1]].decimals}f}" for key in columns
        ]
        lines.append([name, f"{row['network_evaluations']:.0f}", f"{row['seconds']:.1f}", *cells])
    return markdown(lines)


def plot(rows: dict[str, dict]) -> Figure:
    """A column for each quality factor: gains by evaluations, and where LPIPS is there, that by the gain in PSNR."""
    columns, presets = columns_of(rows), {name: row for name, row in rows.items() if _DIAL not in name}
    factors, metrics = sorted({factor for factor, _ in columns}), list(dict.fromkeys(metric for _, metric in columns))
    size = (4 * len(factors), 3 * len(metrics))
    figure, axes = plt.subplots(len(metrics), len(factors), figsize=size, squeeze=False, layout="constrained")
    for metric, axes_row in zip(metrics, axes, strict=True):
        for factor, axis in zip(factors, axes_row, strict=True):
            if metric == "lpips":
                places = {name: (row[factor, "psnr"], row[factor, metric]) for name, row in rows.items()}
                dial = [place for name, place in sorted(places.items()) if name.split(_DIAL)[0] == "balanced"]
                axis.plot(*zip(*dial, strict=True), color="tab:blue", linewidth=1)
                axis.set(xlabel=f"gain in {title('psnr')}", ylabel=title(metric))
            else:
                places = {name: (row["network_evaluations"], row[factor, metric]) for name, row in presets.items()}
                axis.set(xscale="log", xlabel="network evaluations", ylabel=f"gain in {title(metric)}")
                counts = sorted({count for count, _ in places.values()})
                axis.set_xticks(counts, [f"{count:.0f}" for count in counts])
                axis.minorticks_off()
            for name, place in places.items():
                label = name.replace(f"balanced{_DIAL}", "sharpness")
                axis.plot(*place, "s" if name.startswith("paper") else "o", color="tab:blue")
                axis.annotate(label, place, (0, -7), textcoords="offset points", fontsize=8, ha="center", va="top")
            axis.set_title(f"QF {factor}")
            axis.margins(x=0.2, y=0.2)
            axis.grid(alpha=0.3)
    return figure


def make(folders: list[Path], output: Path, larger: list[Path] | None = None) -> None:
    """Write the page of evaluations of a few images, and of `larger` ones of all, of some of the same presets."""
    rows = {name: row for folder in folders for name, row in gains(folder).items()}
    table = gain_table(rows)
    print(table)

    save(plot(rows), output)

    first, more = next(iter(rows.values())), ""
    if larger:
        all_rows = {name: row for folder in larger for name, row in gains(folder).items()}
        more = text("presets-larger", images=next(iter(all_rows.values()))["images"], table=gain_table(all_rows))
    filled = page_of(
        "presets",
        first["prior_sha256"],
        images=first["images"],
        dtype=first["dtype"],
        table=table,
        plot=output.name,
        larger=more,
    )
    write(output.with_suffix(".md"), filled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders that ddrm-jpeg evaluate wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "presets", help="without suffix")
    arguments = parser.parse_args()
    make(arguments.results, arguments.output)


if __name__ == "__main__":
    main()
