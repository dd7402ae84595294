"""Saved pipelines as strangers load them: in a process of their own, with a fresh cache, without this package."""

import ast
import json
import re
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import guided_diffusion
import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, ddrm_jpeg, jpeg_bytes, make_unet
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from hub_server import HOME, forget_downloads
from huggingface_hub import ModelCard, close_session
from PIL import Image
from test_conversion import SMALL

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler, PiGDMScheduler
from pipeline_ddrm_jpeg.conversion import checkpoint_shapes
from pipeline_ddrm_jpeg.formatting import size
from pipeline_ddrm_jpeg.hub import _COMPARISON, _DOCUMENTS, assemble_space, copy_modules

STRANGER = """
import sys
import torch
from diffusers import DiffusionPipeline, UNet2DModel

def restore(pipe, image, output):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pipe(image, preset="paper", num_inference_steps=2, num_samples=2, generator=generator).images[0].save(output)

"""


def stranger(code, *arguments):
    """A process of somebody who has nothing of this package, nor anything downloaded; gives what it printed."""
    forget_downloads()
    done = processes.run(STRANGER + code, *arguments, prelude=processes.STRANGER)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def repo(tmp_path, photo):
    """A saved pipeline with a card of its own, a JPEG beside it, and what the package itself makes of that."""
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler(eta=0.9))
    pipe.save_pretrained(tmp_path / "repo")
    (tmp_path / "repo" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# My prior\n")
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((40, 24)), quality=20))
    restore(pipe, tmp_path / "a.jpg", tmp_path / "expected.png")
    return tmp_path


def restore(pipe, picture, output):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pipe(picture, preset="paper", num_inference_steps=2, num_samples=2, generator=generator).images[0].save(output)


def tree(folder):
    """Every file below a folder with its content."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def same(first, second):
    return np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


def test_the_index_names_the_code_and_every_module_is_there(repo):
    index = json.loads((repo / "repo" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "DDRMJPEGPipeline"]
    assert index["scheduler"] == ["scheduling_ddrm", "DDRMScheduler"]
    code = {path.relative_to(repo / "repo").with_suffix("").as_posix() for path in (repo / "repo").rglob("*.py")}
    here = {name for name in code if not name.startswith("scheduler/")}
    seen = {name: get_relative_imports(repo / "repo" / f"{name}.py") for name in code}
    assert {name.replace("/", ".") for name in here - {"pipeline"}} == set(seen.pop("pipeline"))
    assert set(seen.pop("scheduler/scheduling_ddrm")) == {"scheduling_ddrm_itself", "settings"}  # loaded by itself
    assert not any(seen.values())  # or diffusers would ask for modules again and again
    assert not [name for name in here if re.match("cli|files$|tasks|shards|restoration|evaluation", name)]
    for folder in {Path(name).parts[0] for name in here if "/" in name}:  # a repo has no __init__.py
        assert len(ast.parse((ROOT / "pipeline_ddrm_jpeg" / folder / "__init__.py").read_text()).body) <= 1


MADE_UP = {
    "pipeline": """
from diffusers import DiffusionPipeline

from .jpeg import tables
from .jpeg.planes import (
    planes,
)
from . import other
from .root import ROOT

class MadeUp(DiffusionPipeline):
    def __init__(self):
        super().__init__()

    def __call__(self):
        from .decoded.late import late
        return [ROOT, tables.TABLES, late(), planes() == [tables, other]]
""",
    "root": "from . import other\nROOT = other.OTHER",
    "other": "OTHER = 'other'",
    "jpeg/tables": "from ..root import ROOT\nTABLES = f'tables of {ROOT}'",
    "jpeg/planes": "from . import tables\n\ndef planes():\n    from .. import other\n    return [tables, other]",
    "decoded/late": "from ..jpeg.deep import DEEP\nif DEEP: from .early import EARLY\ndef late(): return DEEP + EARLY",
    "decoded/early": "EARLY = 'early'",
    "jpeg/deep": "from .tables import (\n    TABLES,\n)\nfrom ..jpeg import tables\nDEEP = tables.TABLES",
    "command": "from .pipeline import MadeUp",
    "files/formats": "from ..root import ROOT",
}


def test_modules_in_folders_are_found_and_loaded_wherever_and_however_they_are_imported(tmp_path, hub):
    for name, text in MADE_UP.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / f"{name}.py").write_text(text)
    copy_modules(tmp_path / "package", "pipeline", tmp_path / "repo")
    saved = tree(tmp_path / "repo")
    assert saved.keys() == {f"{name}.py" for name in {*MADE_UP, "pipeline_itself"} - {"command", "files/formats"}}
    copy_modules(tmp_path / "repo", "pipeline", tmp_path / "again")
    assert tree(tmp_path / "again") == saved
    index = {"_class_name": ["pipeline", "MadeUp"], "_diffusers_version": "0.41.0"}
    (tmp_path / "repo" / "model_index.json").write_text(json.dumps(index))
    hub.repos["tester/prior"] = {"main": tree(tmp_path / "repo")}
    code = """
for source in sys.argv[1:]:
    print(*DiffusionPipeline.from_pretrained(source, trust_remote_code=True)(), sep=", ")
"""
    loaded = stranger(code, tmp_path / "repo", "tester/prior")
    assert loaded.stdout == "other, tables of other, tables of otherearly, True\n" * 2, loaded.stderr
    assert "Warning" not in loaded.stderr
    asked = [request for request in hub.requests if request.startswith("GET") and request.endswith(".py")]
    assert len(asked) == len(saved)  # each once


def test_a_saved_pipeline_loads_and_saves_and_loads_without_the_package(repo, hub):
    code = """
folder, image, again, first, second = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
assert pipe.scheduler.config.eta == 0.9
restore(pipe, image, first)
pipe.save_pretrained(again)
restore(DiffusionPipeline.from_pretrained(again, trust_remote_code=True), image, second)
"""
    stranger(code, *(repo / name for name in ("repo", "a.jpg", "again", "first.png", "second.png")))
    assert same(repo / "expected.png", repo / "first.png")
    assert same(repo / "expected.png", repo / "second.png")
    assert tree(repo / "again") == tree(repo / "repo")
    assert not hub.requests, "what is in a folder is not asked for"
    # One process is not forked: it never had the package.
    third = "restore(DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True), *sys.argv[2:])"
    code = processes.STRANGER + STRANGER + third
    forget_downloads()
    subprocess.run([sys.executable, "-c", code, repo / "again", repo / "a.jpg", repo / "third.png"], check=True)
    assert same(repo / "expected.png", repo / "third.png")


def test_versions_of_a_repo_and_a_stranger_s_run_their_own_modules_in_one_process(repo):
    shutil.copytree(repo / "repo", repo / "new")
    for folder, version in (("repo", "old"), ("new", "the newer")):
        for name, code in {
            "sampling/settings": f"VERSION = {version!r}",
            "sampling/scheduling_ddrm": "from . import settings\nDDRMScheduler.version = lambda _: settings.VERSION",
            "pipeline_itself": "from . sampling.settings import VERSION\nDDRMJPEGPipeline.version = lambda _: VERSION",
        }.items():
            with open(repo / folder / f"{name}.py", "a") as file:
                file.write(f"\n{code}\n")
    shutil.copytree(repo / "repo" / "unet", repo / "theirs" / "unet")
    index = {
        "_class_name": ["pipeline", "Theirs"],
        "_diffusers_version": "0.41.0",
        "unet": ["diffusers", "UNet2DModel"],
    }
    (repo / "theirs" / "model_index.json").write_text(json.dumps(index))
    for name in ("settings", "priors"):
        (repo / "theirs" / f"{name}.py").write_text("THEIRS = 'theirs'")
    (repo / "theirs" / "pipeline.py").write_text("""
from diffusers import DiffusionPipeline
from .settings import THEIRS
from .priors import THEIRS

class Theirs(DiffusionPipeline):
    def __init__(self, unet):
        super().__init__()
        self.register_modules(unet=unet)
""")
    code = """
theirs, *ours, image, first, second = sys.argv[1:]
DiffusionPipeline.from_pretrained(theirs, trust_remote_code=True)
pipes = [DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) for folder in ours]
for pipe, output in zip(pipes, (first, second)):
    print(pipe.version(), pipe.scheduler.version(), sep=", ")
    restore(pipe, image, output)
"""
    names = ("theirs", "repo", "new", "a.jpg", "first.png", "second.png")
    assert stranger(code, *(repo / name for name in names)).stdout == "old, old\nthe newer, the newer\n"
    assert same(repo / "expected.png", repo / "first.png")
    assert same(repo / "expected.png", repo / "second.png")


def test_loads_repos_samplers_variants_placements_and_overrides_live_in_one_process(repo, hub):
    other = DDRMJPEGPipeline(unet=make_unet(seed=1), scheduler=DDRMScheduler(eta=0.5))
    other.save_pretrained(repo / "other")
    restore(other, repo / "a.jpg", repo / "expected other.png")
    half = DDRMJPEGPipeline(unet=make_unet(seed=2).half(), scheduler=DDRMScheduler(eta=0.9))
    half.save_pretrained(repo / "half", variant="fp16")
    guided = DDRMJPEGPipeline(unet=make_unet(), scheduler=PiGDMScheduler(eta=0.9))
    guided.save_pretrained(repo / "guided")
    restore(guided, repo / "a.jpg", repo / "expected guided.png")
    assert json.loads((repo / "guided" / "model_index.json").read_text())["scheduler"] == [
        *("scheduling_pigdm", "PiGDMScheduler")
    ]
    code = """
folder, other, half, guided, image, output, other_output, placed, guided_output, again, overridden = sys.argv[1:]
first, pipe = (DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) for _ in range(2))
second = DiffusionPipeline.from_pretrained(other, trust_remote_code=True)
restore(second, image, other_output)
restore(pipe, image, output)

pipe = DiffusionPipeline.from_pretrained(half, variant="fp16", dtype=torch.float16, trust_remote_code=True)
assert pipe.unet.dtype == torch.float16

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, device_map="balanced")
assert pipe.scheduler.config.eta == 0.9
restore(pipe, image, placed)

pipe = DiffusionPipeline.from_pretrained(guided, trust_remote_code=True)
assert type(pipe.scheduler).__name__ == "PiGDMScheduler"
pipe.save_pretrained(again)
restore(DiffusionPipeline.from_pretrained(again, trust_remote_code=True), image, guided_output)

unet = UNet2DModel.from_pretrained(other, subfolder="unet")
pipe = DiffusionPipeline.from_pretrained(folder, unet=unet, trust_remote_code=True, dtype=torch.bfloat16)
assert pipe.unet is unet and pipe.scheduler.config.eta == 0.9
pipe.save_pretrained(overridden)
"""
    names = ("repo", "other", "half", "guided", "a.jpg")
    names += ("out.png", "other.png", "placed.png", "guided.png", "again", "overridden")
    stranger(code, *(repo / name for name in names))
    assert same(repo / "expected.png", repo / "out.png")
    assert same(repo / "expected other.png", repo / "other.png")
    assert same(repo / "expected.png", repo / "placed.png")
    assert same(repo / "expected guided.png", repo / "guided.png")
    assert tree(repo / "again") == tree(repo / "guided")
    assert "My prior" not in (repo / "overridden" / "README.md").read_text()  # the card goes with the prior


def test_the_embedded_prior_has_its_card_and_a_changed_one_has_not(tmp_path):
    pipe = DDRMJPEGPipeline.from_embedded(dtype=torch.bfloat16)
    pipe.save_pretrained(tmp_path / "own")
    own = tree(tmp_path / "own")
    assert own["README.md"] == (ROOT / "model_card.md").read_bytes()
    assert own["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert {name for name in own if name.startswith(("examples", "docs"))} == {
        *(f"examples/{name}.jpg" for name in ("cameraman", "cat", "cat-crushed", "galaxies")),
        "docs/comparison.png",
    }
    assert not any(str(ROOT).encode() in data for data in own.values())  # nobody's paths are published

    again = DDRMJPEGPipeline.from_prior(tmp_path / "own", dtype=torch.bfloat16)
    again.save_pretrained(tmp_path / "again")
    assert tree(tmp_path / "again") == own
    pipe.save_pretrained(tmp_path / "own")  # into the folder it is already in
    assert tree(tmp_path / "own") == own

    for changed in (pipe, again):
        torch.nn.init.zeros_(changed.unet.conv_out.weight)
        changed.save_pretrained(tmp_path / "changed")
        card = ModelCard.load(tmp_path / "changed" / "README.md")
        assert card.data.license == "mit"  # of what it was made from
        assert "another prior" in card.text
        assert "Results" not in card.text


def test_a_prior_of_unknown_terms_is_saved_but_not_published(repo):
    unet = make_unet()
    pipe = DDRMJPEGPipeline(unet=unet, scheduler=DDRMScheduler())
    pipe.save_pretrained(repo / "unknown")
    card = ModelCard.load(repo / "unknown" / "README.md")
    assert card.data.license is None
    assert "not known under which terms" in card.text
    with pytest.raises(ValueError, match="names no licence"):
        pipe.push_to_hub("tester/unknown", token="hf_secret")


def test_a_wheel_holds_what_a_repo_holds():
    included = (ROOT / "pyproject.toml").read_text().partition("force-include]")[2].partition("\n[")[0]
    for pattern in ("model_card.md", *_DOCUMENTS, _COMPARISON):
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)]
        assert names
        for name in names:
            assert f'"{name}" = "pipeline_ddrm_jpeg/prior/{name}"' in included


def test_save_pretrained_does_not_upload(tmp_path):
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler())
    with pytest.raises(ValueError, match="push_to_hub"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)


def push(repo):
    """Convert a small checkpoint and push it, as a user would."""
    torch.save(guided_diffusion.seeded_state(checkpoint_shapes(SMALL), "hub"), repo / "model.pt")
    flags = "--image-size 32 --num-channels 32 --num-res-blocks 1 --channel-mult 1,2 --attention-resolutions 16"
    command = ["convert", "--checkpoint", repo / "model.pt", "-o", repo / "converted", *flags.split()]
    return ddrm_jpeg(*command, "--num-head-channels", "16", "--push", "tester/prior")


def test_a_converted_prior_is_pushed_and_loaded_from_the_hub_by_its_id(repo, hub):
    pushed = push(repo)
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.endpoint}/tester/prior" in pushed.stdout
    assert "hf_secret" not in pushed.stdout + pushed.stderr
    written = {str(path.relative_to(repo / "converted")) for path in (repo / "converted").rglob("*") if path.is_file()}
    assert written <= set(hub.repos["tester/prior"]["main"])

    code = """
restore(DiffusionPipeline.from_pretrained("tester/prior", trust_remote_code=True), *sys.argv[1:])
"""
    stranger(code, repo / "a.jpg", repo / "hub.png")
    pipe = DDRMJPEGPipeline.from_prior(repo / "converted", dtype="float32")  # as from_pretrained has it
    generator = torch.Generator().manual_seed(0)
    ours = pipe(repo / "a.jpg", preset="paper", num_inference_steps=2, num_samples=2, generator=generator).images[0]
    difference = np.asarray(ours, dtype=float) - np.asarray(Image.open(repo / "hub.png"), dtype=float)
    assert np.abs(difference).max() <= 1  # another memory layout may round another way


def test_a_push_makes_repo_and_branch_and_refuses_in_a_sentence(repo, hub, prior_folder, monkeypatch):
    ours = repo / "repo"
    plain = {"README.md": b"---\nlicense: apache-2.0\n---\n# A DDPM\nNumbers of its own.\n"} | tree(prior_folder)
    hub.repos["tester/ddpm"] = {"main": plain}
    stale = "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
    hub.repos["tester/converted"] = {"main": {}, "old": {stale: b"", "notes.txt": b"kept"}}
    pushes = [
        ("hf_secret", ["tester/ddrm", "--prior", ours, "--private"]),
        ("hf_secret", ["tester/ddrm", "--prior", ours]),
        ("hf_secret", ["tester/ddrm", "--prior", ours, "--revision", "v1"]),
        ("hf_secret", ["stranger/ddrm", "--prior", ours]),
        ("hf_secret", ["tester/other", "--prior", prior_folder]),
        ("hf_secret", ["no such name", "--prior", ours]),
        ("hf_secret", ["tester/ddrm", "--space", "--prior", ours, "--dry-run"]),
        ("hf_secret", ["tester/converted", "--prior", "tester/ddpm", "--revision", "old"]),
        ("hf_expired", ["tester/ddrm", "--prior", ours]),
        ("", ["tester/ddrm", "--prior", ours]),
        ("", ["tester/embedded", "--dry-run"]),
    ]
    results = []
    for token, arguments in pushes:
        monkeypatch.setenv("HF_TOKEN", token)
        results.append(ddrm_jpeg("push", *arguments))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    printed = "".join(result.stdout + result.stderr for result in results)
    assert not any(words in printed for words in ("Traceback", "hf_secret", "hf_expired"))
    said = [result.stdout for result in results]

    assert f"{hub.endpoint}/tester/ddrm\n" in said[0]
    assert "from_pretrained('tester/ddrm', trust_remote_code=True)" in said[0]
    assert hub.private == {"tester/ddrm"}
    # The second push changed nothing; a branch differs in where its modular form finds the weights.
    assert hub.commits == ["tester/ddrm"] * 4 + ["tester/converted"] * 2
    pushed = dict(hub.repos["tester/ddrm"]["main"])
    assert pushed.pop("unet/diffusion_pytorch_model.fp16.safetensors")
    index = json.loads(pushed.pop("modular_model_index.json"))
    assert index["unet"][2]["pretrained_model_name_or_path"] == "tester/ddrm"
    assert pushed == {name: data for name, data in tree(repo / "repo").items() if name != "modular_model_index.json"}
    assert set(hub.repos["tester/ddrm"]) == {"main", "modular", "v1", "v1-modular"}
    assert "revision='v1'" in said[2]
    for number, sentence in (
        (3, "may not write there (403: You don't have the rights"),
        (4, "names no licence"),
        (5, "Repo id must"),
        (6, "there is no space/app.py"),
        (8, "does not accept the token"),
        (9, "no token of the Hub"),
    ):
        if number == 6 and (ROOT / "space" / "app.py").exists():
            assert "tester/ddrm-space (space)" in said[6]
            continue
        assert sentence in results[number].stderr.splitlines()[-1]
        assert (results[number].returncode, said[number]) == (1, "")
    count = int(re.search(r"tester/embedded \(model\): (\d+) files", said[10])[1])
    assert count == len(re.findall(r"^ +[\d.]+ (?:bytes|kB|MB)  \S+$", said[10], re.MULTILINE)) > 20
    card = (ROOT / "model_card.md").read_text().replace("from_pretrained(REPO,", 'from_pretrained("tester/embedded",')
    assert f"{size(len(card.encode())):>12}  README.md" in said[10]
    assert set(hub.repos) == {"tester/ddpm", "tester/ddrm", "tester/converted"}
    card = ModelCard(hub.repos["tester/converted"]["old"]["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "tester/ddpm")
    assert "Numbers" not in card.text
    assert 'from_pretrained("tester/converted", trust_remote_code=True)' in card.text
    assert "notes.txt" in hub.repos["tester/converted"]["old"]
    assert stale not in hub.repos["tester/converted"]["old"]

    hub.repos["tester/ddrm"]["v1"]["scheduler/scheduler_config.json"] = json.dumps({"eta": 0.3}).encode()
    code = """
image, output, again = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained("tester/ddrm", trust_remote_code=True)
assert pipe.scheduler.config.eta == 0.9
restore(pipe, image, output)
pipe.save_pretrained(again)
pipe = DiffusionPipeline.from_pretrained(
    "tester/ddrm", revision="v1", variant="fp16", dtype=torch.float16, trust_remote_code=True
)
assert pipe.scheduler.config.eta == 0.3 and pipe.unet.dtype == torch.float16
"""
    stranger(code, *(repo / name for name in ("a.jpg", "hub.png", "again")))
    assert same(repo / "expected.png", repo / "hub.png")
    assert tree(repo / "again") == tree(repo / "repo")


def branches(hub, repo, **licences):
    """A Hub repo whose branches hold priors of different weights, cards and licences."""
    files = {}
    for seed, (branch, licence) in enumerate(licences.items()):
        pipe = DDRMJPEGPipeline(unet=make_unet(seed=seed), scheduler=DDRMScheduler())
        pipe.save_pretrained(repo / branch)
        (repo / branch / "README.md").write_text(f"---\nlicense: {licence}\n---\n# The card of {branch}\n")
        files[branch] = tree(repo / branch)
    hub.repos["tester/prior"] = files


def test_the_card_is_that_of_the_revision_and_cache_the_prior_came_from(repo, hub):
    branches(hub, repo, main="cc-by-nc-4.0", v1="mit")
    for name, options in {"main": {}, "v1": {"revision": "v1"}, "own": {"cache_dir": repo / "own cache"}}.items():
        DDRMJPEGPipeline.from_prior("tester/prior", **options).save_pretrained(repo / "saved" / name)
    DDRMJPEGPipeline.from_pretrained("tester/prior", revision="v1").save_pretrained(repo / "saved" / "whole")
    for name, branch in (("main", "main"), ("v1", "v1"), ("own", "main"), ("whole", "v1")):
        assert (repo / "saved" / name / "README.md").read_bytes() == (repo / branch / "README.md").read_bytes()


def test_a_local_folder_is_never_asked_for_at_the_hub(repo, hub, monkeypatch):
    branches(hub, repo, main="mit")
    hub.repos["models/prior"] = hub.repos["tester/prior"]  # strangers have taken the name of the folder
    (repo / "models").mkdir()
    (repo / "repo").rename(repo / "models" / "prior")
    monkeypatch.chdir(repo)
    pipe = DDRMJPEGPipeline.from_prior("models/prior")
    unet = type(pipe.unet).from_pretrained("models/prior", subfolder="unet")
    bare = DDRMJPEGPipeline(unet=unet, scheduler=pipe.scheduler)
    (repo / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    pipe.save_pretrained("saved")
    bare.save_pretrained("bare")
    for name in ("saved", "bare"):
        assert "# My prior" in (repo / "elsewhere" / name / "README.md").read_text()
    assert not [request for request in hub.requests if "prior" in request]


def test_saving_asks_nothing_that_is_cached_or_forbidden_and_does_not_wait_for_a_silent_hub(repo, hub, caplog):
    branches(hub, repo, main="mit")
    DDRMJPEGPipeline.from_prior("tester/prior").save_pretrained(repo / "first")
    hub.requests.clear()
    hub.silent = True
    DDRMJPEGPipeline.from_prior("tester/prior", local_files_only=True).save_pretrained(repo / "second")
    for path in HOME.rglob("README.md"):
        path.unlink()
    DDRMJPEGPipeline.from_prior("tester/prior", local_files_only=True).save_pretrained(repo / "forbidden")
    assert not [request for request in hub.requests if "prior" in request]
    assert tree(repo / "second") == tree(repo / "first")
    assert "another prior" in (repo / "forbidden" / "README.md").read_text()

    pipe = DDRMJPEGPipeline.from_prior(next(HOME.glob("hub/models--tester--prior/snapshots/*")))
    pipe.save_pretrained(repo / "waited")
    assert "The card of tester/prior at" in caplog.text
    assert "another prior" in (repo / "waited" / "README.md").read_text()


def test_a_prior_that_cannot_be_had_is_told_in_a_sentence_of_its_own(prior_folder, tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prior.pt").touch()
    for name in ("open", "locked", "gated"):
        hub.repos[f"tester/{name}"] = {"main": tree(prior_folder)}
    hub.private, hub.gated = {"tester/locked"}, {"tester/gated"}
    log_in = "run `hf auth login` or set HF_TOKEN"
    sentences = {
        "./models/nope": "there is no such folder; a repo of the Hub is written OWNER/NAME",
        "prior.pt": "a prior is a folder, and this is a file; `ddrm-jpeg convert` converts checkpoints",
        "https://huggingface.co/tester": "this is not the page of a model of the Hub; write OWNER/NAME, or a folder",
        "https://huggingface.co/datasets/tester/open": "this is not the page of a model of the Hub",
        "https://huggingface.co/tester/open/tree/v1": "this is not the page of a model of the Hub",
        "models/nope": f"there is no such folder, and no such repo on the Hub, or it is private: then {log_in}",
        "tester/locked": f"there is no such folder, and no such repo on the Hub, or it is private: then {log_in}",
        "tester/gated": f"the repo is gated; ask for access on its page {hub.endpoint}/tester/gated, and {log_in}",
    }
    for prior, sentence in sentences.items():
        with pytest.raises(OSError, match=f"^{re.escape(f'{prior}: {sentence}')}"):
            DDRMJPEGPipeline.from_prior(prior, token=False)
    with pytest.raises(OSError, match=r"^tester/open: the Hub refuses it \(401: Invalid cred.*\); run `hf auth"):
        DDRMJPEGPipeline.from_prior("tester/open", token="hf_expired")
    with pytest.raises(OSError, match=r"^v1 is not a valid git identifier"):
        DDRMJPEGPipeline.from_prior("tester/open", revision="v1")
    done = ddrm_jpeg("restore", ROOT / "examples" / "cat.jpg", "-o", tmp_path / "out", "--prior", "tester/gated")
    assert done.stderr.splitlines()[-1] == f"ddrm-jpeg: --prior tester/gated: {sentences['tester/gated']}"
    for page in ("https://huggingface.co/tester/locked", "huggingface.co/tester/locked/"):
        pipe = DDRMJPEGPipeline.from_prior(page)
        assert pipe.unet.origin.repo_id == "tester/locked"


def test_what_is_in_the_cache_loads_offline_and_while_the_hub_is_away(repo, prior_folder, hub, monkeypatch):
    hub.repos["tester/whole"] = {"main": tree(repo / "repo")}
    hub.repos["tester/ddpm"] = {"main": tree(prior_folder / "unet") | tree(prior_folder / "scheduler")}

    def load():
        whole = DDRMJPEGPipeline.from_pretrained("tester/whole")
        priors = [DDRMJPEGPipeline.from_prior(f"tester/{name}") for name in ("whole", "ddpm")]
        return [pipe.scheduler.config.eta for pipe in (whole, *priors)]

    there = load()
    hub.requests.clear()
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert load() == there
        assert not hub.requests
        with pytest.raises(OSError, match=r"^tester/other: .* nor is it in the cache; .*`HF_HUB_OFFLINE`"):
            DDRMJPEGPipeline.from_prior("tester/other")
    close_session()  # or what is said is that the connection broke
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's attempts
    with hub.away():
        assert load() == there
        with pytest.raises(OSError, match=r"^tester/other: .*the Hub was not asked or not reached \(.*refused\)"):
            DDRMJPEGPipeline.from_prior("tester/other")


@pytest.mark.parametrize(
    ("first", "second"),
    [({"max_shard_size": "20KB"}, {}), ({}, {"safe_serialization": False}), ({}, {"max_shard_size": "20KB"})],
)
def test_weights_of_another_layout_do_not_outlive_a_save(tmp_path, first, second):
    old, new = (DDRMJPEGPipeline(unet=make_unet(seed=seed), scheduler=DDRMScheduler()) for seed in (0, 1))
    old.save_pretrained(tmp_path, **first)
    old.save_pretrained(tmp_path, variant="fp16", **first)
    new.save_pretrained(tmp_path, **second)
    loaded = DDRMJPEGPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.unet.conv_in.weight, new.unet.conv_in.weight)
    loaded = DDRMJPEGPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(loaded.unet.conv_in.weight, old.unet.conv_in.weight)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler())
    pipe.save_pretrained(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="not supported"):
        pipe.save_pretrained(tmp_path, max_shard_size="no size")
    assert tree(tmp_path) == before


def test_after_a_push_people_load_what_was_pushed(repo, hub):
    branches(hub, repo, old="mit", new="mit")
    old, new = (DDRMJPEGPipeline.from_prior(repo / name) for name in ("old", "new"))
    for number, (first, second) in enumerate([({"max_shard_size": "20KB"}, {}), ({}, {"safe_serialization": False})]):
        name = f"tester/{number}"
        old.push_to_hub(name, **first)
        old.push_to_hub(name, variant="fp16", **first)
        new.push_to_hub(name, variant="fp16", **second)
        for variant, expected in ((None, old), ("fp16", new)):
            loaded = DDRMJPEGPipeline.from_pretrained(name, variant=variant)
            assert torch.equal(loaded.unet.conv_in.weight, expected.unet.conv_in.weight), (number, variant)
        commit = new.push_to_hub(name, **second)
        loaded = DDRMJPEGPipeline.from_pretrained(name, revision=commit.oid)
        assert torch.equal(loaded.unet.conv_in.weight, new.unet.conv_in.weight), number
    commit = new.push_to_hub("tester/0", "a request", None, None, True, False)
    assert commit.pr_url == f"{hub.endpoint}/tester/0/discussions/1", commit.pr_url
    assert commit.repo_url.repo_id == "tester/0"
    assert [name for name in hub.repos["tester/0"]["main"] if "fp16" in name or "-of-" in name] == []
    assert "unet/diffusion_pytorch_model.bin" in hub.repos["tester/0"]["refs/pr/1"]


class Sharpened(DDRMJPEGPipeline):
    """A pipeline with an argument of its own."""

    def __init__(self, unet, scheduler, denoiser_error=None, sharpening: float = 0.0):
        super().__init__(unet, scheduler, denoiser_error)
        self.register_to_config(sharpening=sharpening)


def test_a_class_loads_its_own_kind_without_code_of_the_repo(tmp_path):
    Sharpened(make_unet(), DDRMScheduler(eta=0.7), sharpening=0.5).save_pretrained(tmp_path)
    plain = DDRMJPEGPipeline.from_pretrained(tmp_path)
    assert type(plain) is DDRMJPEGPipeline
    assert type(plain.scheduler) is DDRMScheduler
    loaded = Sharpened.from_pretrained(tmp_path, trust_remote_code=True)
    assert (type(loaded), loaded.config.sharpening, loaded.scheduler.config.eta) == (Sharpened, 0.5, 0.7)
    passed = DDRMJPEGPipeline.from_pretrained(tmp_path, scheduler=DDRMScheduler(eta=0.2))
    assert passed.scheduler.config.eta == 0.2


def test_a_hub_that_is_away_is_told_in_a_sentence(repo, hub):
    with hub.away():
        pushed = push(repo)
    assert pushed.returncode == 1
    assert "Traceback" not in pushed.stderr
    assert pushed.stderr.splitlines()[-1].startswith("ddrm-jpeg: ")


CARD = (ROOT / "model_card.md").read_text()


def test_a_space_brings_the_package_and_names_what_it_needs(tmp_path):
    assemble_space(tmp_path)
    requirements = (tmp_path / "requirements.txt").read_text().splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in requirements}
    assert {"torch", "diffusers", "jpeglib", "gradio"} < names
    assert not {"pipeline-ddrm-jpeg", "pytest", "torchvision"} & names
    assert (tmp_path / "pipeline_ddrm_jpeg" / "prior" / "unet" / "config.json").is_file()
    for path in (tmp_path / "examples").iterdir():
        assert not path.is_symlink()


def test_the_parameters_on_the_card_are_those_of_the_call():
    parameters = signature(DDRMJPEGPipeline.__call__).parameters
    rows = [line.split("|") for line in CARD.partition("## Parameters")[2].partition("Beside")[0].splitlines()]
    listed = {
        name.strip(" `"): cells[2].strip(" `") for cells in rows if len(cells) > 3 for name in cells[1].split(",")
    }
    plumbing = {"self", "image", "file", "moved", "return_dict", "callback_on_step_end"}
    plumbing |= {"callback_on_step_end_tensor_inputs"}
    assert listed.keys() - {"argument", "---"} == parameters.keys() - plumbing
    for name in parameters.keys() - plumbing:
        default = parameters[name].default
        assert listed[name] == (f'"{default}"' if isinstance(default, str) else str(default))
