"""Saved pipelines as strangers load them: in a fresh process, with a fresh cache, without this package."""

import json
import os
import subprocess
import sys

import guided_diffusion
import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, make_unet
from hub_server import Hub
from PIL import Image
from test_conversion import SMALL

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler, hub
from pipeline_ddrm_jpeg.conversion import checkpoint_shapes

STRANGER = """
import sys
sys.modules["pipeline_ddrm_jpeg"] = None  # not importable
import torch
from diffusers import DiffusionPipeline, UNet2DModel

def restore(pipe, picture, output):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pipe(picture, num_inference_steps=2, num_samples=2, generator=generator).images[0].save(output)

"""


def stranger(code, *arguments, cache):
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STRANGER + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache.parent)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def repo(tmp_path, photo):
    """A saved pipeline, a JPEG beside it, and what the package itself makes of that."""
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler(eta=0.9))
    pipe.save_pretrained(tmp_path / "repo")
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((40, 24)), quality=20))
    generator = torch.Generator().manual_seed(0)
    pipe(tmp_path / "a.jpg", num_inference_steps=2, num_samples=2, generator=generator).images[0].save(
        tmp_path / "expected.png"
    )
    return tmp_path


def same(first, second):
    return np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


def test_the_index_names_the_code_and_every_module_is_there(repo):
    index = json.loads((repo / "repo" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "DDRMJPEGPipeline"]
    assert index["scheduler"] == ["scheduling_ddrm", "DDRMScheduler"]
    source = (repo / "repo" / "pipeline.py").read_text()
    for module in hub._MODULES:
        assert (repo / "repo" / f"{module}.py").exists()
        assert module == "pipeline" or f"from .{module} import" in source  # diffusers copies what is named there


def test_a_saved_pipeline_loads_and_saves_and_loads_without_the_package(repo):
    code = """
folder, picture, again, first, second = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
assert pipe.scheduler.config.eta == 0.9
restore(pipe, picture, first)
pipe.save_pretrained(again)
restore(DiffusionPipeline.from_pretrained(again, trust_remote_code=True), picture, second)
"""
    stranger(
        code,
        *(repo / name for name in ("repo", "a.jpg", "again", "first.png", "second.png")),
        cache=repo / "cache",
    )
    assert same(repo / "expected.png", repo / "first.png")
    assert same(repo / "expected.png", repo / "second.png")
    third = "restore(DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True), *sys.argv[2:])"
    stranger(third, repo / "again", repo / "a.jpg", repo / "third.png", cache=repo / "another cache")
    assert same(repo / "expected.png", repo / "third.png")


def test_two_loads_and_an_override_live_in_one_process(repo):
    code = """
folder, picture, output, override = sys.argv[1:]
for _ in range(2):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
restore(pipe, picture, output)
unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
torch.nn.init.zeros_(unet.conv_out.weight)
pipe = DiffusionPipeline.from_pretrained(folder, unet=unet, trust_remote_code=True, dtype=torch.bfloat16)
restore(pipe, picture, override)
"""
    stranger(
        code,
        *(repo / name for name in ("repo", "a.jpg", "out.png", "override.png")),
        cache=repo / "cache",
    )
    assert same(repo / "expected.png", repo / "out.png")
    assert not same(repo / "expected.png", repo / "override.png")


def test_a_half_precision_variant_is_saved_and_loaded(repo):
    pipe = DDRMJPEGPipeline(unet=make_unet().half(), scheduler=DDRMScheduler())
    pipe.save_pretrained(repo / "repo", variant="fp16")
    code = """
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], variant="fp16", dtype=torch.float16, trust_remote_code=True)
assert pipe.unet.dtype == torch.float16
"""
    stranger(code, repo / "repo", cache=repo / "cache")


def test_save_pretrained_does_not_upload(tmp_path):
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler())
    with pytest.raises(ValueError, match="push_to_hub"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)


@pytest.fixture
def server():
    instance = Hub()
    yield instance
    instance.shutdown()


def online(server, home):
    """Environment of a user whose Hub is the local one."""
    settings = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **settings, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


def push(repo, server):
    """Convert a small checkpoint and push it, as a user would."""
    torch.save(guided_diffusion.seeded_state(checkpoint_shapes(SMALL), "hub"), repo / "model.pt")
    flags = "--image-size 32 --num-channels 32 --num-res-blocks 1 --channel-mult 1,2 --attention-resolutions 16"
    command = [sys.executable, "-m", "pipeline_ddrm_jpeg", "convert", "--checkpoint", repo / "model.pt"]
    command += ["-o", repo / "converted", *flags.split(), "--num-head-channels", "16", "--push", "tester/prior"]
    environment = online(server, repo / "home")
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


def test_a_converted_prior_is_pushed_and_loaded_from_the_hub_by_its_id(repo, server):
    pushed = push(repo, server)
    assert pushed.returncode == 0, pushed.stderr
    assert f"{server.endpoint}/tester/prior" in pushed.stdout
    assert "hf_secret" not in pushed.stdout + pushed.stderr
    written = {str(path.relative_to(repo / "converted")) for path in (repo / "converted").rglob("*") if path.is_file()}
    assert written <= set(server.repos["tester/prior"]["main"])

    code = """
restore(DiffusionPipeline.from_pretrained("tester/prior", trust_remote_code=True), *sys.argv[1:])
"""
    loaded = subprocess.run(
        [sys.executable, "-c", STRANGER + code, str(repo / "a.jpg"), str(repo / "hub.png")],
        capture_output=True,
        text=True,
        env=online(server, repo / "another home"),
    )
    assert loaded.returncode == 0, loaded.stderr
    pipe = DDRMJPEGPipeline.from_prior(repo / "converted")
    generator = torch.Generator().manual_seed(0)
    ours = pipe(repo / "a.jpg", num_inference_steps=2, num_samples=2, generator=generator).images[0]
    difference = np.asarray(ours, dtype=float) - np.asarray(Image.open(repo / "hub.png"), dtype=float)
    assert np.abs(difference).max() <= 1  # another memory layout may round another way


def test_a_hub_that_is_away_is_told_in_a_sentence(repo, server):
    server.shutdown()
    server.server_close()
    pushed = push(repo, server)
    assert pushed.returncode == 1
    assert "Traceback" not in pushed.stderr
    assert pushed.stderr.splitlines()[-1].startswith("ddrm-jpeg: ")
