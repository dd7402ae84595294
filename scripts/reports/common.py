"""What the reports share: finished evaluations, files, plots, and the parts of a page that are made from numbers."""

import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from pipeline_ddrm_jpeg import Settings
from pipeline_ddrm_jpeg.evaluation.run import fingerprint
from pipeline_ddrm_jpeg.files.formats import write_atomically

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
TEXTS = Path(__file__).parent / "texts"
DATASETS = {
    "imagenet": "ImageNet validation",
    "kodak24": "Kodak",
    "cid22val": "CID22 validation",
    "live1": "LIVE release 1",
    "mcmaster18": "McMaster",
}
"""Names of the published sets, the first of them shown first."""


def evaluation(folder: Path) -> dict[str, Any]:
    """The record of a finished evaluation."""
    path = folder / "evaluation.json"
    record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not record.get("rows"):
        sys.exit(f"{folder} holds no finished evaluation; ddrm-jpeg evaluate makes one")
    return record


def changed(settings: Settings) -> str:
    """Settings in a line: what differs from the default."""
    usual = Settings()
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value != usual[name]) or "default"


class Measured:
    """What a report measured, kept in a JSON file: not measured again by a run that goes on, but with other weights."""

    def __init__(self, path: Path, network: Any) -> None:
        self.path = path
        self.record: dict[str, Any] = {"prior_sha256": fingerprint(network)}
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if known.get("prior_sha256") == self.record["prior_sha256"]:
            self.record = known

    def __call__(self, key: str, measure: Callable[[], T]) -> T:
        if key not in self.record:
            self.record[key] = measure()
            write(self.path, json.dumps(self.record, indent=1) + "\n")
        return self.record[key]


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of a script returns in a process of its own, whose peak of memory is its own."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "pipeline_ddrm_jpeg.pipeline"])  # once for all of them
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def text(name: str, **parts: object) -> str:
    """The prose of `texts/NAME.md`, with what was measured in place of each `$part`; an empty part leaves no gap."""
    filled = Template((TEXTS / f"{name}.md").read_text("utf-8")).substitute(parts)
    return re.sub(r"\n{3,}", "\n\n", filled).strip() + "\n"


def page_of(name: str, prior_sha256: str, **parts: object) -> str:
    """A page of the documentation: its text, notes on the run that measured it, and the prior that its numbers are of.

    A note tells how the numbers of one prior came about; it stands in `texts/notes/NAME-PRIOR.md`, and goes with them.
    """
    prior = prior_sha256[:12]
    note = TEXTS / "notes" / f"{name}-{prior}.md"
    notes = [note.read_text("utf-8")] if note.exists() else []
    return "\n".join([text(name, **parts), *notes, f"Prior `{prior}`.\n"])


def write(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))
    print(path)


def save(figure: Any, output: Path) -> None:
    """A plot as OUTPUT.png and OUTPUT.svg, the same files for the same plot."""
    import matplotlib

    output.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = output.name
    for suffix in (".png", ".svg"):
        path = output.with_suffix(suffix)
        figure.savefig(path, dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
        print(path)


def fill(page: str, name: str, text: str) -> str:
    """The page with new text between the two markers of a name."""
    start, end = f"<!-- {name}: made by make results -->\n", f"\n<!-- /{name} -->"
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"the page lacks the markers {start.strip()} and {end.strip()}")
    return f"{before}{start}{text}{end}{after}"
