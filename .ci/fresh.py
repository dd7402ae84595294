"""Install the package as strangers do, each time into an empty environment, and use what was installed.

python3.11 .ci/fresh.py [NAME ...]    # of: checkout wheel eval datasets train classes baselines space

Everything runs in a folder outside the checkout, so that nothing can be imported from there.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


class Environment:
    """An empty environment, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.folder = folder / "env" / "bin", folder / "work"
        self.folder.mkdir()
        venv.create(folder / "env", with_pip=True, symlinks=True)

    def install(self, *what: str) -> None:
        self("python", "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *what)

    def __call__(self, program: str, *arguments: object, **variables: str) -> str:
        """Run a program of the environment; what it prints."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        variables = {"PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
        own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        command = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=own | variables, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{' '.join(command)}: status {done.returncode}")
        return done.stdout

    def expect(self, said: str, *words: str) -> None:
        for each in words:
            if each not in said:
                sys.exit(f"{said}\n{each!r} is missing above")


def command(env: Environment) -> None:
    """The command, and the package from Python."""
    env.expect(env("ddrm-jpeg", "inspect", EXAMPLES / "cat.jpg"), "quality")
    env.expect(
        env("ddrm-jpeg", "restore", EXAMPLES / "cat-crushed.jpg", "-o", "out.png"), "out.png", "coefficients kept"
    )
    code = "import pipeline_ddrm_jpeg as p; print(p.__file__)"
    if str(ROOT) in env("python", "-c", code):
        sys.exit("the package was imported from the checkout")


def checkout(env: Environment) -> None:
    env.install(str(ROOT))
    command(env)


def wheel(env: Environment) -> None:
    env("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", ".", str(ROOT))
    env.install(*map(str, env.folder.glob("*.whl")))
    command(env)


def evaluation(env: Environment) -> None:
    env.install(f"{ROOT}[eval]")
    few = ("--limit", "2", "--size", "64", "--preset", "fast", "--quality", "10", "-o", "results")
    env.expect(env("ddrm-jpeg", "evaluate", EXAMPLES / "originals", *few), "SSIM", "PSNR-B", "SSIMULACRA2")
    (record,) = (json.loads(path.read_text()) for path in env.folder.glob("results/evaluation.json"))
    if not {"ssim", "psnr_b", "ssimulacra2"} <= {*record["rows"][0]["metrics"]}:
        sys.exit(f"metrics are missing in {record['rows'][0]}")


def datasets(env: Environment) -> None:
    env.install(f"{ROOT}[datasets]")
    (env.folder / "images").mkdir()
    for name in ("cat.jpg", "cat-crushed.jpg"):
        shutil.copy(EXAMPLES / name, env.folder / "images")
    env("python", EXAMPLES / "restore_dataset.py", "images", "restored", HF_HOME=str(env.folder / "cache"))
    env.expect(" ".join(path.name for path in env.folder.glob("restored/*")), "dataset_info.json")


def training(env: Environment) -> None:
    env.install(f"{ROOT}[train]")
    shutil.copytree(EXAMPLES / "originals", env.folder / "photographs")
    scripts = ROOT / "scripts" / "training"
    env("python", scripts / "prepare_data.py", "photographs", "data", "--licence", "CC0-1.0")
    tiny = ["run.steps=3", "data.validation=1", "data.crops=[[32,2]]", "model.block_out_channels=[8,8,8,8,8]"]
    env("python", scripts / "train_prior.py", "data", "run", *(f"--set={change}" for change in tiny))
    env.expect(env("ddrm-jpeg", "restore", EXAMPLES / "cat.jpg", "-o", "out.png", "--prior", "run/prior"), "out.png")


def classes(env: Environment) -> None:
    env.install(f"{ROOT}[classes]")
    env("python", ROOT / ".ci" / "make_classes.py", "prior", "classifier")
    said = env(
        *("ddrm-jpeg", "restore", EXAMPLES / "cat.jpg", "-o", "out.png", "--prior", "prior", "--steps", "1"),
        *("--class-label", "auto", "--classifier", "classifier"),
    )
    env.expect(said, "out.png")


def baselines(env: Environment) -> None:
    env.install(f"{ROOT}[baselines]")
    few = ("--limit", "1", "--size", "64", "--preset", "fast", "--quality", "10", "-o", "results")
    env.expect(env("ddrm-jpeg", "evaluate", EXAMPLES / "originals", *few, "--baseline", "waifu2x"), "waifu2x", "Ours")


def space(env: Environment) -> None:
    env.install(f"{ROOT}[space]")
    shutil.copytree(ROOT / "space", env.folder / "space")
    env.expect(env("python", ROOT / ".ci" / "visit_page.py", "space/app.py", EXAMPLES), "restored through the page")


STEPS = {
    "checkout": checkout,
    "wheel": wheel,
    "eval": evaluation,
    "datasets": datasets,
    "train": training,
    "classes": classes,
    "baselines": baselines,
    "space": space,
}


def main() -> None:
    names = sys.argv[1:] or list(STEPS)
    if unknown := {*names} - {*STEPS}:
        sys.exit(f"{', '.join(sorted(unknown))}: not among {', '.join(STEPS)}")
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
            STEPS[name](Environment(Path(folder)))
        print(f"{name}: installed into an empty environment and used, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
