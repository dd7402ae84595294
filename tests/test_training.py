"""The training scripts, on a tiny network and four images."""

import csv
import json
import shutil
import signal
import time

import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, jpeg_bytes, paper
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from draw_graphics import KINDS
from grow import grow
from PIL import Image
from safetensors.torch import load_file
from train_prior import Crops, Graphics, Photographs, compile_for_training, from_nothing

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.sampling.denoiser_error import DenoiserError

TINY = [
    *("initial=null", "model.block_out_channels=[8,16]", "model.norm_num_groups=4"),
    *("model.down_block_types=[DownBlock2D,DownBlock2D]", "model.up_block_types=[UpBlock2D,UpBlock2D]"),
    *("data.crops=[[32,2],[48,2]]", "data.validation=1", "run.steps=40", "run.decay=10"),
    *("run.checkpoint_every=20", "run.validate_every=40", "last.steps=10", "last.crops=[[48,4]]"),
]


TRAINING = ROOT / "scripts" / "training"


def run(script, *arguments):
    return processes.run(TRAINING / script, *arguments)


@pytest.fixture(scope="module")
def pictures(photo, tmp_path_factory):
    """What scripts/training/prepare_data.py makes of a JPEG, two PNG files, a tiny and a broken one."""
    source, output = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("training")
    (source / "a.jpg").write_bytes(jpeg_bytes(photo.resize((700, 500))))
    photo.save(source / "b.png")
    photo.crop((0, 0, 200, 200)).save(source / "c.png")
    photo.crop((0, 0, 90, 200)).save(source / "tiny.png")
    (source / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for _ in range(2):  # the second time, everything is there
        done = run("prepare_data.py", source, output, "--licence", "CC0-1.0")
        assert done.returncode == 0, done.stderr
        assert f"3 images in {output}, 2 left out" in done.stdout
    return output


def test_the_manifest_names_source_size_and_licence(pictures):
    rows = {row["source"]: row for row in csv.DictReader((pictures / "manifest.csv").open(newline=""))}
    assert sorted(rows) == ["a.jpg", "b.png", "c.png"]
    assert rows["a.jpg"]["original_width"] == "700"
    assert rows["a.jpg"]["original_format"] == "JPEG"
    assert rows["a.jpg"]["licence"] == "CC0-1.0"


def test_a_run_that_was_stopped_ends_as_one_that_was_not(pictures, photo, tmp_path):
    changes = ["--graphics", pictures, *(f"--set={change}" for change in TINY)]
    done = run("train_prior.py", pictures, tmp_path / "whole", *changes)
    assert done.returncode == 0, done.stderr

    stopped = processes.Process(TRAINING / "train_prior.py", pictures, tmp_path / "parts", *changes)
    while not (tmp_path / "parts" / "validation.csv").exists():
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    said = "".join(stopped.communicate())
    assert stopped.returncode == 130, said
    assert "The same command goes on" in said
    done = run("train_prior.py", pictures, tmp_path / "parts", *changes, "--set=run.workers=1")
    assert done.returncode == 0, done.stderr
    assert "Going on from" in done.stdout

    weights = [load_file(tmp_path / run / "checkpoint-00000040" / "model.safetensors") for run in ("whole", "parts")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    gains = [list(csv.DictReader((tmp_path / run / "validation.csv").open())) for run in ("whole", "parts")]
    assert [row["gain"] for row in gains[0]] == [row["gain"] for row in gains[1]]
    assert (tmp_path / "whole" / "training.png").exists()

    pipe = DDRMJPEGPipeline.from_prior(tmp_path / "whole" / "prior")
    assert paper(pipe, jpeg_bytes(photo), num_inference_steps=1, init_timestep=10).images[0].size == photo.size


def test_photographs_are_shrunk_and_half_of_the_graphics_stay_as_they_were_drawn():
    rng = np.random.default_rng(0)
    lines = Image.fromarray((np.indices((120, 150)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    photographs, graphics = Photographs([lines], (0.5, 0.9), grey=0.0), Graphics([lines], (0.5, 0.9), grey=0.0)

    def sharp(kind):  # of a chessboard of single pixels only what was not resampled is black and white
        return [{*kind.crop(rng, 32).reshape(-1).tolist()} == {0, 255} for _ in range(200)]

    assert not any(sharp(photographs))
    assert 70 < sum(sharp(graphics)) < 130
    with pytest.raises(SystemExit, match="None of the 1 images to train on has 121 x 121 pixels"):
        photographs.crop(rng, 121)


def test_a_sample_follows_from_its_number_and_kinds_have_their_shares(photo):
    kinds = [(Photographs([photo], (0.5, 1.0), grey=1.0), 0.75), (Photographs([photo], (0.5, 1.0)), 0.25)]
    levels = np.linspace(0.01, 1.2, 300)
    crops = Crops(kinds, levels=levels, timesteps=(1, 299), sampling="root", seed=3)
    samples = [crops[number, 16] for number in range(400)]
    again = crops[399, 16]
    assert all(np.array_equal(samples[399][name], again[name]) for name in again)
    grey = [np.ptp(sample["clean"], axis=0).max() == 0 for sample in samples]
    assert 0.65 < np.mean(grey) < 0.85
    assert np.mean([sample["timestep"] < 75 for sample in samples]) == pytest.approx(0.5, abs=0.05)  # its root is even


def test_drawings_follow_from_the_seed_and_differ(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ("--count", len(KINDS), "--side", 96, "--seed", seed)
        done = run("draw_graphics.py", tmp_path / name, *arguments)
        assert done.returncode == 0, done.stderr
    once, again, other = (
        [Image.open(path).convert("RGB").tobytes() for path in sorted((tmp_path / name).iterdir())] for name in "abc"
    )
    assert once == again
    assert len({*once, *other}) == 2 * len(KINDS)
    assert {len(pixels) for pixels in once} == {96 * 96 * 3}


def test_two_processes_learn_what_one_learns(pictures, tmp_path):
    changes = [f"--set={change}" for change in [*TINY, "run.steps=4", "last.steps=2"]]
    script = TRAINING / "train_prior.py"
    alone = [processes.run(script, pictures, tmp_path / "one", *changes)]
    both = processes.run_together(2, script, pictures, tmp_path / "two", *changes)
    for runs in (alone, both):
        assert [done.returncode for done in runs] == [0] * len(runs), runs
        assert "".join(done.stdout for done in runs).count("step 0:") == 1  # only the main process validates
    one, two = (load_file(tmp_path / name / "checkpoint-00000004" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def tiny_unet(**config):
    torch.manual_seed(0)
    kinds = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    return UNet2DModel(
        **kinds
        | {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
        | config
    )


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_a_grown_network_computes_what_it_did_before(blocks):
    small = tiny_unet()
    grown = grow(small, blocks)
    assert grown.config.layers_per_block == blocks
    noisy = torch.randn(2, 3, 32, 32)
    assert torch.allclose(grown(noisy, 30).sample, small(noisy, 30).sample, atol=1e-6)
    if blocks > 1:
        assert sum(map(torch.numel, grown.parameters())) > sum(map(torch.numel, small.parameters()))
        with pytest.raises(ValueError, match="cannot be grown to 1"):
            grow(grown, 1)


def test_attention_is_not_grown():
    with pytest.raises(ValueError, match="this network has AttnDownBlock2D"):
        grow(tiny_unet(down_block_types=["DownBlock2D", "AttnDownBlock2D"]), 2)


class TwoLevels(torch.nn.Module):
    """The layers of a U-Net whose lower level gets no gradient where all are compiled (torch 2.13), and no more."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = ResnetBlock2D(in_channels=8, temb_channels=None, groups=4)
        self.up = Upsample2D(8, use_conv=True)
        self.norm, self.out = torch.nn.GroupNorm(4, 8), torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return self.out(torch.nn.functional.silu(self.norm(self.up(self.block(self.down(x), None)))))


@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="no C++ compiler to compile with")
def test_a_compiled_network_learns_at_every_level():
    noisy, noise = torch.randn(2, 2, 3, 32, 32)
    gradients = []
    for compiled in (False, True):
        network = TwoLevels().to(memory_format=torch.channels_last)
        if compiled:
            compile_for_training(network)
        predicted = network(noisy.contiguous(memory_format=torch.channels_last))
        (predicted - noise).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("run.stepz=3", "has no 'run.stepz'"), ("data.validation=9", "9 are kept for validation")],
)
def test_what_cannot_be_trained_is_said_in_a_sentence(pictures, tmp_path, change, complaint):
    done = run("train_prior.py", pictures, tmp_path / "out", "--set=initial=null", f"--set={change}")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_error_of_a_prior_is_measured_and_found_by_whoever_loads_it(photo, prior_folder, tmp_path):
    prior = shutil.copytree(prior_folder, tmp_path / "prior")
    photo.save(tmp_path / "clean.png")
    done = run("measure_denoiser_error.py", tmp_path, prior, "--size", "64")
    assert done.returncode == 0, done.stderr
    pipe = DDRMJPEGPipeline.from_prior(prior)
    error = DenoiserError.from_config(pipe.config.denoiser_error)
    assert error.std.shape == (20, 2, 8, 8)
    # At little noise an untrained network leaves what there is of it, and at much it takes the image along.
    assert error.std[-1].mean() > error.std[0].mean()
    assert error.noise_to_signal[0].item() == pytest.approx(pipe.scheduler.noise_to_signal(1), rel=1e-3)


def test_priors_are_measured_side_by_side(photo, prior_folder, tmp_path):
    other = shutil.copytree(prior_folder, tmp_path / "the same again")
    (tmp_path / "pictures").mkdir()
    photo.save(tmp_path / "pictures" / "clean.png")
    arguments = (tmp_path / "pictures", "--prior", prior_folder, "--prior", other, "--output", tmp_path / "found.json")
    done = run("measure_prior.py", *arguments, "--presets", "fast", "--quality-factors", "10")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found[prior_folder.name] == found[other.name]
    residual = found[other.name]["residual"]
    assert list(residual) == ["whole", "window 64", "window 128", "window 256"]
    assert all(len(values) == 8 and min(values) > 0 for values in residual.values())
    assert f"| {other.name} | fast | {found[other.name]['gain']['fast'][0]:+.3f} |" in done.stdout


def test_a_network_from_nothing_begins_as_its_shortcuts():
    unet = from_nothing(dict(tiny_unet().config))
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    block = unet.down_blocks[1].resnets[0]
    x = x[:, :1].expand(-1, block.conv1.in_channels, -1, -1)
    embedding = torch.randn(2, block.time_emb_proj.in_features)
    plain = x if block.conv_shortcut is None else block.conv_shortcut(x)
    assert torch.equal(block(x, embedding), plain)
    loss = unet(torch.randn(1, 3, 32, 32), 10).sample.square().mean()
    loss.backward()
    assert all(one.conv2.weight.grad.any() for one in unet.mid_block.resnets), "and learns from the first step on"
