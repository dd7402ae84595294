"""Make everything anew that states a number, from the embedded prior and the presets.

make results PICTURES=FOLDER [LIMIT=N]
python scripts/reports FOLDER [--limit N] [--only STAGE...] [--processes N] [--lpips-weights FILE]

FOLDER holds one folder of evaluation images for each set. Evaluations go to build/results, so that a run that was
stopped goes on; those of other weights, presets or options have folders of their own. After a change of the code that
changes numbers, remove build/results. The words of a page stand in scripts/reports/texts, and notes on the run that
measured it in texts/notes. The stages, and what they write:

  results          docs/results.md, docs/results.json
  presets          docs/presets.md and its plot
  corrections      docs/corrections.md, docs/corrections.json
  samplers         docs/samplers.md, docs/samplers.json
  uncertainty      docs/uncertainty.md, docs/uncertainty.json
  graphics         docs/graphics.md
  history          docs/history.md
  rate-distortion  docs/rate_distortion.md and its plot
  figures          docs/figures/, docs/comparison.png; takes no images but those of examples/
  benchmark        docs/benchmark.md, docs/benchmark.json; the same
  throughput       docs/throughput.md, docs/throughput.json
  pages            model_card.md and README.md, from docs/results.json
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import comparison
import figures
import graphics
import pages
import presets
import rate_distortion
import results
from common import DATASETS, ROOT, write

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline
from pipeline_ddrm_jpeg.cli import app
from pipeline_ddrm_jpeg.evaluation import baselines, metrics
from pipeline_ddrm_jpeg.evaluation.run import fingerprint
from pipeline_ddrm_jpeg.priors import EMBEDDED

STAGES = (
    *("results", "presets", "corrections", "samplers", "uncertainty", "graphics", "history"),
    *("rate-distortion", "figures", "benchmark", "throughput", "pages"),
)
_WITHOUT_PICTURES = {"graphics", "figures", "benchmark", "pages"}
CHOSEN_ON = ("mcmaster18", "live1")  # the sets that settings are chosen with
CURVES = "kodak24"  # the set of the rate-distortion curves and of the throughput, where it is there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="folder with a folder of images for each set")
    parser.add_argument("--limit", type=int, default=1000, help="at most so many images of a set (all)")
    parser.add_argument("--only", nargs="+", default=STAGES, choices=STAGES, metavar="STAGE", help="stages (all)")
    parser.add_argument("--processes", type=int, default=1, help="processes that share an evaluation (1)")
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help="as of ddrm-jpeg evaluate")
    parser.add_argument("--prior", type=Path, help="folder of another prior than the embedded one")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the images (256)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "results", help="folder of the evaluations")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout whose docs/ and pages are written")
    arguments = parser.parse_args()
    docs = arguments.root / "docs"

    load = partial(DDRMJPEGPipeline.from_prior, arguments.prior or EMBEDDED)
    prior = ["--prior", str(arguments.prior)] if arguments.prior else []
    lpips = ["--lpips-weights", str(arguments.lpips_weights)] if arguments.lpips_weights else []
    sets = find_sets(arguments.pictures) if set(arguments.only) - _WITHOUT_PICTURES else []
    weights = fingerprint(load().unet)
    others = [
        word
        for name in baselines.BASELINES
        if available(name, baselines.unavailable(name))
        for word in ("--baseline", name)
    ]
    available("lpips", metrics.unavailable("lpips", arguments.lpips_weights))

    def evaluate(preset: str, sets: list[Path], limit: int, *options: str) -> Path:
        """The folder of a finished evaluation."""
        options = (*options, "--size", str(arguments.size), *prior, *lpips)
        decisive = json.dumps([weights, dict(PRESETS[preset]), [str(path.resolve()) for path in sets], options])
        folder = arguments.work / f"{preset}-{hashlib.sha256(decisive.encode()).hexdigest()[:12]}"
        command = ["evaluate", *map(str, sets), "--output", str(folder), "--preset", preset]
        command += ["--limit", str(min(limit, arguments.limit)), *options]
        print(f"evaluating {preset} on {', '.join(path.name for path in sets)}", flush=True)
        if ddrm_jpeg(command, arguments.processes):
            sys.exit(f"the evaluation in {folder} is not finished; the same command goes on")
        return folder

    def make_results() -> None:
        folders = [
            evaluate("balanced", sets, 1000, *others, "--quality", "5,10,20,30,40"),
            evaluate("balanced", sets, 1000, *others, "--quality", "60,75,85,92,97"),
            evaluate("balanced", sets, 8, *others, "--quality", "10,40,75,92", "--subsampling", "4:4:4"),
            evaluate("balanced", sets, 8, "--convention", "released"),
        ]
        results.make(folders, docs / "results")

    def make_presets() -> None:
        measured = [name for name in PRESETS if name != "paper"]  # which is the first sample of paper-average
        factors = ("--quality", "5,10,20,30,40")
        larger = [evaluate(name, sets, 1000, *factors) for name in ("fast", "balanced")]
        larger.append(evaluate("balanced", sets, 1000, *factors, "--sharpness", "1"))
        folders = [evaluate(name, sets, 3) for name in measured]
        sharper = [evaluate("balanced", sets, 3, "--sharpness", value) for value in ("0.5", "1")]
        presets.make([*folders[:3], *sharper, *folders[3:]], docs / "presets", larger)

    def make_graphics() -> None:
        drawn = graphics.draw(arguments.work / "graphics", seed=1, size=arguments.size)
        factors = ("--quality", "5,10,20,30,40")
        with_others = evaluate("balanced", [drawn], 1000, *others, *factors)
        folders = {
            "fast": evaluate("fast", [drawn], 1000, *factors),
            "balanced": with_others,
            "balanced, 8 steps": evaluate("balanced", [drawn], 1000, *factors, "--steps", "8"),
            "best": evaluate("best", [drawn], 1000, *factors),
        }
        graphics.make(folders, with_others, docs / "graphics.md")

    def script(name: str, *options: Any) -> None:
        """Run a script beside this one, which writes pages of its own name."""
        command = [Path(__file__).with_name(f"{name}.py"), *options, "--output", docs / name]
        subprocess.run([sys.executable, *map(str, command)], check=True)

    def make_comparison(name: str) -> None:
        script(name, *([path for path in sets if path.name in CHOSEN_ON] or sets[:1]), *lpips)

    def make_uncertainty() -> None:
        script("uncertainty", *([path for path in sets if path.name not in CHOSEN_ON] or sets))

    def make_history() -> None:
        script("history", arguments.pictures, "--limit", min(arguments.limit, 4))

    def curves() -> Path:
        return next((path for path in sets if path.name == CURVES), sets[0])

    def make_curves() -> None:
        factors = ",".join(map(str, range(5, 100, 5)))
        folder = evaluate("balanced", [curves()], 8, *others, "--quality", factors)
        rate_distortion.make(folder, docs / "rate_distortion")

    def make_figures() -> None:
        figures.make(load(dtype="auto"), docs / "figures")
        restored = arguments.work / "examples"
        command = ["restore", ROOT / "examples", "--output", restored, "--overwrite", "--quiet", *prior]
        subprocess.run([sys.executable, "-m", "pipeline_ddrm_jpeg", *map(str, command)], check=True)
        comparison.make(restored, docs / "comparison.png")

    def make_benchmark() -> None:
        script("benchmark", "--processes", 2)

    def make_throughput() -> None:
        script("throughput", curves())

    def make_pages() -> None:
        for path, text in pages.make(arguments.root).items():
            write(path, text)

    makers = (
        *(make_results, make_presets, partial(make_comparison, "corrections"), partial(make_comparison, "samplers")),
        *(make_uncertainty, make_graphics, make_history, make_curves),
        *(make_figures, make_benchmark, make_throughput, make_pages),
    )
    for stage, make in zip(STAGES, makers, strict=True):
        if stage in arguments.only:
            make()


def ddrm_jpeg(command: list[str], processes: int) -> int:
    """The status of the command, in this process or in several; only what goes wrong is printed."""
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command = [sys.executable, *launch, "-m", "pipeline_ddrm_jpeg", *command]
        return subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            app(command, prog_name="ddrm-jpeg")
        except SystemExit as end:
            return end.code
    raise AssertionError("the command ends with a status")


def find_sets(images: Path | None) -> list[Path]:
    """The folders of images, those of published sets first."""
    if images is None or not images.is_dir():
        sys.exit("give a folder that holds one folder of images for each set: make results PICTURES=FOLDER")
    sets = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not sets:
        sys.exit(f"{images} holds no folders; put the images of each set in one")
    known = list(DATASETS)
    return sorted(sets, key=lambda path: known.index(path.name) if path.name in known else len(known))


def available(name: str, reason: str | None) -> bool:
    if reason:
        print(f"{name} is left out: {reason}")
    return reason is None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
