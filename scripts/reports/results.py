"""Gather evaluations into docs/results.md, for people, and docs/results.json, for the model card.

ddrm-jpeg evaluate FOLDER... --output RESULTS [options]
python scripts/reports/results.py RESULTS... [--output docs/results]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import ROOT, evaluation, prior_line, write

from pipeline_ddrm_jpeg.evaluation.protocol import JPEG, SINGLE
from pipeline_ddrm_jpeg.evaluation.tables import evaluation_tables, groups, markdown

INTRODUCTION = """# Results

What `ddrm-jpeg evaluate` printed, gathered by `make results`; nothing is typed by hand. The pictures are
256-pixel versions of published sets (halved by averaging, then bicubic, then the central square): ImageNet validation
(`imagenet`), Kodak (`kodak24`), the validation part of CID22 (`cid22val`), LIVE release 1 (`live1`, derived from
Kodak) and McMaster (`mcmaster18`). Where a set has more, those restored are spread evenly over it.
Text, diagrams and screens are in [graphics.md](graphics.md).

- **JPEG** is the picture as Pillow decodes the file (convention `libjpeg`), or, without a file, as the
  operator decodes (convention `released`, the JPEG of the paper's program).
- **Ours (S)** is the first sample, **Ours (A)** the average. Seconds are those of one CPU thread for a picture.
- **PSNR** is over RGB before rounding to 8 bits, the mean over pictures; the others are on 8-bit RGB, defined in
  `pipeline_ddrm_jpeg/evaluation/metrics.py`.
- These are the results of `balanced`, the default; how other settings compare, the paper's among them, is in
  [presets.md](presets.md), and curves over all quality factors in [rate_distortion.md](rate_distortion.md).
- **jpegqs** is JPEG Quant Smooth (`-q 6`), **waifu2x** its cunet model, noise level 3, which was trained on JPEG.

The paper's prior has 85 times as many parameters. On ImageNet its Table 1 has, for JPEG / Ours (S) / Ours (A), PSNR of
23.46 / 25.19 / 25.90 dB at QF 5, 26.12 / 27.68 / 28.37 at QF 10 and 29.53 / 30.98 / 31.58 at QF 30.
"""
PEERS = """## Beside other methods

Gain over the JPEG file on LIVE1, in dB of PSNR. The published figures are of grey images at full size. Those run here
are of colour images of 256 x 256 pixels. So rows of the two kinds cannot be compared exactly.

{}

FBCNN (Jiang et al., 2021) and SwinIR (Liang et al., 2021) are the better choice where PSNR is all that counts. FBCNN
has 71.9 million parameters according to OpenVINO's Open Model Zoo; the embedded prior has 6.5. Their results may
contradict the file. Ours agree with it: they use its own quantization tables, and several samples show what it leaves
open.

## Measured
"""
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
WORSE = """## What is made worse

How many pictures of all sets have a lower PSNR than their JPEG, and which of ours gains least:

"""
FIGURES = """## Figures

By `scripts/reports/figures.py`, from public-domain pictures, with the preset `best`. Quality factors 5, 10, 20 and 30:

![original, JPEG and restoration](figures/figure_4.png)

The paper's other problem, pictures of 9 bits a colour:

![9 bits a colour and restoration](figures/figure_2.png)

How far the two samples of `best` differ, and how far their mean is from the original:

![mean, spread and error of the samples](figures/samples.png)

What people notice, with the preset `balanced`: where chroma was crushed to nothing, patches of colour; letters that the
file no longer holds, made into something like letters; skin without its texture:

![original, JPEG and restoration, at defects](figures/defects.png)
"""


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
    """How many pictures each method made worse, and where our samples gain least, for each kind of file."""
    methods = list(dict.fromkeys(mean["method"] for mean in means if mean["method"] != JPEG))
    rows = [["convention", "subsampling", "QF", "pictures", *methods, f"least gain, {SINGLE}", "of"]]
    for (*kind, factor), group in groups(means, "convention", "chroma_subsampling", "quality_factor").items():
        own = {name: [mean for mean in group if mean["method"] == name] for name in methods}
        counts = [str(sum(mean["made_worse"] for mean in each)) if each else "" for each in own.values()]
        least = min(own[SINGLE], key=lambda mean: mean["least_gain"])
        rows.append([*kind, str(factor), str(sum(mean["images"] for mean in own[SINGLE])), *counts])
        rows[-1] += [f"{least['least_gain']:+.2f}", f"{least['dataset']}/{least['least_gain_image']}"]
    return markdown(rows)


def make(folders: list[Path], output: Path) -> None:
    parts, gathered = [], {"command": [], "versions": None, "commit": [], "rows": []}
    for folder in folders:
        record = evaluation(folder)
        line = command(record)
        parts.append(f"```sh\n{line}\n```\n\n{evaluation_tables(record['rows'], record['notes'])}")
        gathered["command"].append(line)
        gathered["versions"] = record["versions"]
        gathered["commit"].append(record["commit"])
        gathered["prior_sha256"] = record["prior_sha256"]
        made_with = {name: record["protocol"][name] for name in ("preset", "settings")}
        gathered["rows"] += [row | made_with for row in record["rows"]]
    parts = [INTRODUCTION, PEERS.format(peers(gathered["rows"])), *parts]
    parts += [f"{WORSE}{made_worse(gathered['rows'])}\n", FIGURES]
    versions = ", ".join(f"{name} {version}" for name, version in gathered["versions"].items())
    parts.append(f"{prior_line(gathered['prior_sha256'])}\nMade with {versions}.\n")
    write(output.with_suffix(".md"), "\n".join(parts))
    write(output.with_suffix(".json"), json.dumps(gathered, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders that ddrm-jpeg evaluate wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results", help="without suffix")
    arguments = parser.parse_args()
    make(arguments.results, arguments.output)


if __name__ == "__main__":
    main()
