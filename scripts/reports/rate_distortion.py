"""Rate-distortion curves (Fig. 3 of the paper) and Bjontegaard deltas from the results of an evaluation.

ddrm-jpeg evaluate FOLDER --output RESULTS --quality 5,10,15,20,25,30,35,40,45,50,55,60,65,70,75,80,85,90,95
python scripts/reports/rate_distortion.py RESULTS [--output docs/rate_distortion]

Rate is bits a pixel of the real files, distortion the mean over the images at one quality factor. Writes the plot as
OUTPUT.png and OUTPUT.svg, and as OUTPUT.md a table, for every metric and method, of BD-rate (per cent of the file size,
at equal quality; negative is a saving) and BD-quality (gain at equal file size), by piecewise cubics.
They are n/a where a curve does not rise all along, as of few small images.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path

from common import ROOT, evaluation, page_of, save, write

from pipeline_ddrm_jpeg.evaluation.metrics import COLUMNS
from pipeline_ddrm_jpeg.evaluation.protocol import AVERAGE, JPEG, SINGLE
from pipeline_ddrm_jpeg.evaluation.tables import groups, markdown
from pipeline_ddrm_jpeg.extras import needs

with needs("eval"):
    import bjontegaard
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

SHOWN = ("psnr", "ssim", "ssimulacra2")
COLOURS = {JPEG: "tab:blue", AVERAGE: "tab:green", SINGLE: "tab:olive", "jpegqs": "tab:gray", "waifu2x": "tab:purple"}


def curves(means: list[dict], metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """For each method the rates and distortions by rising rate."""
    found = {}
    for method in dict.fromkeys(mean["method"] for mean in means):
        points = [(m["bits_per_pixel"], m["metrics"][metric]) for m in means if m["method"] == method]
        rates, distortions = zip(*sorted(points), strict=True)
        found[method] = (list(rates), list(distortions))
    return found


def draw(sets: dict[str, list[dict]], names: list[str], output: Path) -> None:
    """One row of panels a set, one panel a metric."""
    size = (4.2 * len(names), 3.4 * len(sets))
    figure, axes = plt.subplots(len(sets), len(names), figsize=size, squeeze=False, layout="constrained")
    for row, (dataset, means) in zip(axes, sets.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            for method, (rates, distortions) in curves(means, name).items():
                axis.plot(rates, distortions, ".-", color=COLOURS.get(method), label=method, linewidth=1, markersize=4)
            axis.set(xscale="log", xlabel="bits per pixel", ylabel=COLUMNS[name].title, title=dataset)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
        row[0].legend()
    save(figure, output)


def make(folder: Path, output: Path) -> None:
    record = evaluation(folder)
    means = record["rows"]
    if any("bits_per_pixel" not in mean for mean in means):
        sys.exit("the convention released writes no files and has no rate; evaluate with --convention libjpeg")
    if len({mean["quality_factor"] for mean in means}) < 4:
        sys.exit("Bjontegaard deltas need four quality factors or more")
    names = [name for name in SHOWN if all(mean["metrics"].get(name) is not None for mean in means)]
    sets = {dataset: group for (dataset,), group in groups(means, "dataset").items()}
    draw(sets, names, output)

    titles = [COLUMNS[name].title for name in names]
    lines = [["Set", "Method", *(head for title in titles for head in (f"BD-rate, {title}", f"BD-{title}"))]]
    for dataset, group in sets.items():
        of_metric = {name: curves(group, name) for name in names}
        for method in of_metric[names[0]]:
            if method == JPEG:
                continue
            cells = []
            for name in names:
                pair = (*of_metric[name][JPEG], *of_metric[name][method])
                rises = all(low < high for curve in pair for low, high in pairwise(curve))
                cells.append(f"{bjontegaard.bd_rate(*pair, method='pchip'):+.1f} %" if rises else "n/a")
                cells.append(f"{bjontegaard.bd_psnr(*pair, method='pchip'):+.3f}" if rises else "n/a")
            lines.append([dataset, method, *cells])
    table = markdown(lines)
    print(table)
    factors = sorted({mean["quality_factor"] for mean in means})
    counts = ", ".join(f"{group[0]['images']} images of {dataset}" for dataset, group in sets.items())
    text = page_of(
        "rate_distortion",
        record["prior_sha256"],
        counts=counts,
        lowest=factors[0],
        highest=factors[-1],
        table=table,
        plot=output.name,
    )
    write(output.with_suffix(".md"), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder that ddrm-jpeg evaluate wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "rate_distortion", help="without suffix")
    arguments = parser.parse_args()
    make(arguments.results, arguments.output)


if __name__ == "__main__":
    main()
