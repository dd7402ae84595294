"""What the documentation shows is run: every command, every block of Python; or a list says why not."""

import json
import re
import shutil
import tarfile

import processes
import pytest
from conftest import ROOT, jpeg_bytes
from PIL import Image

PAGES = ["README.md", "model_card.md", "examples/README.md", "space/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))

HUB = "needs the Hub; tests/test_hub.py does it with a local one"
CLONE = "needs a clone, an empty environment and minutes; .ci/run does it"
SETS = "needs sets of test images and hours"
TRAINING = "needs a folder of photographs and minutes to hours; tests/test_training.py does it with four"
SEVERAL = "needs several processes; tests/test_evaluation.py starts them"

# By page, the first words of a block that is not run, and why.
NOT_RUN = {
    "README.md": {"git clone": CLONE, "make demo": CLONE},
    "model_card.md": {
        "pip install": CLONE,
        "diffusers-cli run": HUB,
        "ddrm-jpeg evaluate imagenet": SETS,
    },
    "docs/command.md": {
        "accelerate launch": SEVERAL,
        "ddrm-jpeg evaluate FOLDER": SETS,
        "make results": SETS,
        "curl": "needs the network",
        "make space": "serves until it is stopped; tests/test_space.py starts it",
    },
    "docs/benchmark.md": {"python scripts/reports/benchmark.py": "takes minutes and 3 GB"},
    "docs/corrections.md": {"python scripts/reports/corrections.py": SETS},
    "docs/history.md": {"python scripts/reports/history.py": SETS},
    "docs/install.md": {"git clone": CLONE, "pip install": CLONE, "make demo": CLONE},
    "docs/priors.md": {
        "from pipeline_ddrm_jpeg import DDRMJPEGPipeline\n\npipe = DDRMJPEGPipeline.from_prior": HUB,
        "ddrm-jpeg restore photo.jpg --prior google": HUB,
        "ddrm-jpeg restore photo.jpg --prior FOLDER": HUB,
        "ddrm-jpeg convert": "downloads 2.2 GB; tests/test_conversion.py converts a small checkpoint",
        "python scripts/check_full_size.py": "takes 8 GB and minutes",
        "python scripts/training": TRAINING,
        "make results": SETS,
    },
    "docs/processes.md": {"export OMP_NUM_THREADS=1": SEVERAL, "accelerate launch": SEVERAL},
    "docs/python.md": {"diffusers-cli schema": HUB},
    "docs/results.md": {"ddrm-jpeg evaluate": SETS},
    "docs/samplers.md": {"python scripts/reports/samplers.py": SETS},
    "docs/throughput.md": {"python scripts/reports/throughput.py": SETS},
    "docs/uncertainty.md": {"python scripts/reports/uncertainty.py": SETS},
}

# One process for a page: programs of this environment are called in it, and Python has one namespace.
RUN = """
import json, os, runpy, shlex, shutil, sys

os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
namespace = {"__name__": "__main__", "REPO": "published"}
for language, text in json.loads(sys.argv[1]):
    if language == "python":
        exec(compile(text, text, "exec"), namespace)
        continue
    for line in filter(None, text.replace("\\\\\\n", "").splitlines()):
        words = shlex.split(line, comments=True)
        before = [os.dup(number) for number in (0, 1)]
        for number, sign, flags in ((0, "<", os.O_RDONLY), (1, ">", os.O_WRONLY | os.O_CREAT)):
            if sign in words:
                at = words.index(sign)
                os.dup2(os.open(words[at + 1], flags), number)
                del words[at : at + 2]
        sys.argv = words[1:] if words[0] == "python" else [shutil.which(words[0]), *words[1:]]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{line}: status {end.code}"
        for number, kept in enumerate(before):
            os.dup2(kept, number)
"""


def blocks(page):
    """Language and text of a page's fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.S)


def reason(page, text):
    """Why a block is not run, if it is not."""
    return next((why for words, why in NOT_RUN.get(page, {}).items() if text.startswith(words)), None)


@pytest.fixture(scope="module")
def files(photo, tmp_path_factory):
    """What the documentation's commands are about."""
    folder = tmp_path_factory.mktemp("documentation")
    small = photo.crop((100, 60, 164, 124))
    small.save(folder / "picture.png")
    (folder / "photo.jpg").write_bytes(jpeg_bytes(small, quality=10))
    Image.open(folder / "photo.jpg").save(folder / "shot.png")
    (folder / "cut.jpg").write_bytes(jpeg_bytes(small, quality=80)[:-600])
    for name in ("album", "shards"):
        (folder / name).mkdir()
    for name in "ab":
        shutil.copy(folder / "photo.jpg", folder / "album" / f"{name}.jpg")
    with tarfile.open(folder / "shards" / "a.tar", "w") as shard:
        shard.add(folder / "photo.jpg", "0.jpg")
    (folder / "examples" / "originals").mkdir(parents=True)
    small.save(folder / "examples" / "originals" / "cat.png")
    for path in (ROOT / "examples").glob("*.py"):
        shutil.copy(path, folder / "examples")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind in ("sh", "python") for kind, _ in blocks(page))])
def test_what_a_page_shows_runs(page, files, tmp_path):
    steps = [block for block in blocks(page) if block[0] in ("sh", "python") and not reason(page, block[1])]
    if not steps:
        return  # all of it stands in the list
    folder = shutil.copytree(files, tmp_path / "folder")
    if any("REPO" in text for _, text in steps):
        steps.insert(0, ("python", PUBLISH))
    done = processes.run(RUN, json.dumps(steps), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


PUBLISH = """
from pipeline_ddrm_jpeg import DDRMJPEGPipeline

DDRMJPEGPipeline.from_embedded().save_pretrained(REPO)
"""


def test_every_block_says_its_language_and_every_reason_is_needed():
    found = {page: blocks(page) for page in PAGES}
    assert {kind for page in found.values() for kind, _ in page} <= {"sh", "python", "text", "bibtex"}
    for page, reasons in NOT_RUN.items():
        for words in reasons:
            assert any(text.startswith(words) for _, text in found[page]), f"{page} has no block {words!r} any more"
