import hashlib
import json
import os
import pickle
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import guided_diffusion
import numpy as np
import pytest
import torch
from conftest import ROOT, ddrm_jpeg, paper
from diffusers import UNet2DModel

from pipeline_ddrm_jpeg.conversion import (
    CHECKPOINTS,
    ConversionError,
    Download,
    GuidedDiffusionFlags,
    checkpoint_shapes,
    convert,
    convert_checkpoint,
    download,
    load_checkpoint,
)

DATA = ROOT / "tests" / "data"
SMALL = GuidedDiffusionFlags(
    image_size=32,
    num_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 2),
    attention_resolutions=(16,),
    num_head_channels=16,
    learn_sigma=True,
    resblock_updown=True,
)
VARIANTS = {
    "small": SMALL,
    "three blocks a level": replace(SMALL, num_res_blocks=3),
    "class-conditional": replace(SMALL, class_cond=True),
    "new attention order": replace(SMALL, use_new_attention_order=True),
    "convolutions between levels": replace(SMALL, resblock_updown=False, channel_mult=(1, 1, 2)),
    "no scale and shift": replace(SMALL, use_scale_shift_norm=False),
    "attention everywhere": replace(SMALL, attention_resolutions=(32, 16)),
    "no learned variance": replace(SMALL, learn_sigma=False),
    "heads wider than the levels without attention": replace(SMALL, num_head_channels=64, attention_resolutions=(16,)),
    "width 64": replace(SMALL, num_channels=64, num_head_channels=32),
}


@pytest.fixture(scope="module")
def original():
    """Flags, weights, input and output of the original program."""
    described = json.loads((DATA / "guided_diffusion_w32.json").read_text())
    flags = dict(described["flags"])
    flags["attention_resolutions"] = tuple(map(int, flags["attention_resolutions"].split(",")))
    with np.load(DATA / "guided_diffusion_w32.npz") as archive:
        numbers = {name: torch.from_numpy(archive[name]) for name in archive.files}
    return GuidedDiffusionFlags(**flags), guided_diffusion.seeded_state(described["shapes"], described["salt"]), numbers


@torch.no_grad()
def test_the_reference_forward_pass_of_these_tests_is_the_original_one(original):
    flags, state, numbers = original
    ours = guided_diffusion.forward(state, numbers["x"], numbers["t"], flags.num_head_channels)
    torch.testing.assert_close(ours, numbers["output"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_converted_model_computes_what_the_original_computes(original):
    flags, state, numbers = original
    unet = convert(state, flags)
    torch.testing.assert_close(unet(numbers["x"], numbers["t"]).sample, numbers["output"], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 32), (32, 96)])
def test_also_on_pictures_that_are_not_square(original, size):
    flags, state, _ = original
    x, t = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)), torch.tensor([123])
    expected = guided_diffusion.forward(state, x, t, flags.num_head_channels)
    torch.testing.assert_close(convert(state, flags)(x, t).sample, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_other_models_of_the_family_convert_exactly(name):
    flags = VARIANTS[name]
    state = guided_diffusion.seeded_state(checkpoint_shapes(flags), "variant")
    x, t = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 250])
    labels = torch.tensor([5, 999]) if flags.class_cond else None
    expected = guided_diffusion.forward(
        state,
        x,
        t,
        flags.num_head_channels,
        flags.num_res_blocks,
        flags.use_new_attention_order,
        flags.use_scale_shift_norm,
        labels,
    )
    ours = convert(state, flags)(x, t, class_labels=labels).sample
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("wrong", "is_config"),
    [
        ({"use_new_attention_order": True}, False),
        ({"attn_norm_num_groups": None}, True),
        ({"flip_sin_to_cos": False}, True),
        ({"attention_head_dim": 16}, True),
    ],
)
def test_each_known_mistake_would_be_seen(original, wrong, is_config):
    flags, state, numbers = original
    if is_config:
        right = convert(state, flags)
        unet = UNet2DModel(**{**flags.unet_config(), **wrong}).eval()
        unet.load_state_dict(right.state_dict(), strict=False)
    else:
        unet = convert(state, replace(flags, **wrong))
    difference = (unet(numbers["x"], numbers["t"]).sample - numbers["output"]).abs().max()
    assert difference > 1e-2


def test_the_papers_prior_has_the_tensors_of_the_reference_eight_times_as_wide(original):
    narrow = json.loads((DATA / "guided_diffusion_w32.json").read_text())["shapes"]
    wide = checkpoint_shapes(CHECKPOINTS["256x256_diffusion_uncond"])
    assert set(wide) == set(narrow)
    assert len(wide) == 566
    assert sum(int(np.prod(shape)) for shape in wide.values()) == 552_814_086
    for name, shape in narrow.items():
        for ours, theirs in zip(wide[name], shape, strict=True):
            assert ours in (theirs, 8 * theirs)


def test_the_shapes_of_a_checkpoint_are_those_of_the_original(original):
    flags, state, _ = original
    assert checkpoint_shapes(flags) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_the_64x64_model_has_its_published_settings():
    flags = CHECKPOINTS["64x64_diffusion"]
    config = flags.unet_config()
    assert config["block_out_channels"] == (192, 384, 576, 768)
    assert [flags.has_attention(level) for level in range(4)] == [False, True, True, True]
    assert config["num_class_embeds"] == 1000
    assert flags.scheduler().config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (CHECKPOINTS["128x128_diffusion"], "fixed number of attention heads"),
        (CHECKPOINTS["512x512_diffusion"], "starts with 0.5 times"),
        (replace(SMALL, num_channels=48), "48 channels cannot be divided"),
        (replace(SMALL, channel_mult=None, image_size=100), "no default channel_mult"),
        (replace(SMALL, noise_schedule="quadratic"), "noise_schedule"),
        (replace(SMALL, diffusion_steps=0), "must be above 0"),
        (replace(SMALL, num_head_channels=48), "heads of 48"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_the_reason(flags, message):
    with pytest.raises(ConversionError, match=message):
        flags.check()


def small_state():
    return guided_diffusion.seeded_state(checkpoint_shapes(SMALL), "small")


def renamed(state):
    state["input_blocks.1.0.in_layers.9.weight"] = state.pop("input_blocks.1.0.in_layers.2.weight")


def truncated(state):
    state["middle_block.1.qkv.weight"] = state["middle_block.1.qkv.weight"][:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (renamed, r"tensor input_blocks\.1\.0\.in_layers\.2\.weight is missing"),
        (lambda state: state.pop("out.2.bias"), r"tensor out\.2\.bias is missing"),
        (truncated, r"tensor middle_block\.1\.qkv\.weight has shape \[191, 64, 1\], expected \[192, 64, 1\]"),
        (lambda state: state.update(extra=torch.zeros(1)), "tensor extra has no place"),
        (lambda state: state.update({"out.0.weight": torch.zeros(2, 16)}), r"out\.0\.weight has shape \[2, 16\]"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_its_first_tensor(damage, message):
    state = small_state()
    damage(state)
    with pytest.raises(ConversionError, match=message):
        convert(state, SMALL)


def test_nothing_is_copied_that_need_not_be(original):
    flags, state, _ = original
    unet = convert(state, flags)
    assert unet.conv_in.weight.data_ptr() == state["input_blocks.0.0.weight"].data_ptr()
    assert convert(state, flags, torch.float16).dtype == torch.float16


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, "evil.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Payload()}))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ConversionError, match="could run code"):
            load_checkpoint(name)
    assert not (tmp_path / "pwned").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(small_state(), path)
    whole = path.read_bytes()
    for content in (whole[:-1000], whole[: len(whole) // 2], b"", b"hello world", b"PK\3\4 no zip"):
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=r"model\.pt"):
            load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ConversionError, match="dictionary of tensors"):
        load_checkpoint(path)
    plain = torch.ones(2, 2)
    for strange in (plain.to_sparse(), plain.to("meta"), plain.int()):
        torch.save({"a": plain, "b": strange}, path)
        with pytest.raises(ConversionError, match="tensor b is not a plain array"):
            load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_checkpoint_file_becomes_a_pipeline_that_restores(tmp_path, photo, zipped):
    from conftest import jpeg_bytes

    torch.save(small_state(), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    pipe = convert_checkpoint(tmp_path / "model.pt", tmp_path / "repo", replace(SMALL, noise_schedule="cosine"))
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    files = {str(path.relative_to(tmp_path / "repo")) for path in (tmp_path / "repo").rglob("*") if path.is_file()}
    assert {"model_index.json", "pipeline.py", "unet/config.json", "scheduler/scheduling_ddrm.py"} <= files
    assert "research use" in (tmp_path / "repo" / "README.md").read_text()
    pipe.set_progress_bar_config(disable=True)
    data = jpeg_bytes(photo.resize((40, 24)), quality=20)
    assert paper(pipe, data, num_inference_steps=2).images[0].size == (40, 24)


def test_the_script_converts_with_flags_over_a_preset(tmp_path):
    torch.save(small_state(), tmp_path / "model.pt")
    flags = "--image-size 32 --num-channels 32 --num-res-blocks 1 --channel-mult 1,2 --attention-resolutions 16"
    flags = [*flags.split(), "--num-head-channels", "16", "--dtype", "float16"]
    result = ddrm_jpeg("convert", "--checkpoint", tmp_path / "model.pt", "-o", tmp_path / "repo", *flags)
    assert result.returncode == 0, result.stderr
    loaded = UNet2DModel.from_pretrained(tmp_path / "repo", subfolder="unet", dtype=torch.float32)
    expected = convert(small_state(), SMALL, torch.float16).float()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--checkpoint", "none.pt"], 1, "none.pt: No such file"),
        ([], 2, "give --checkpoint FILE, or --download"),
        (["--preset", "sd-xl"], 2, "not one of 256x256_diffusion_uncond"),
        (["--preset", "lsun_cat", "--download"], 2, "--download knows only"),
        (["--checkpoint", "none.pt", "--preset", "512x512_diffusion"], 1, "starts with 0.5 times"),
        (["--checkpoint", "none.pt", "--channel-mult", "a"], 2, "list of numbers"),
        (["--checkpoint", "none.pt", "--attention-resolutions", ""], 2, "'' is not a list of numbers"),
    ],
)
def test_the_script_tells_what_is_wrong_in_a_line(tmp_path, arguments, status, message):
    result = ddrm_jpeg("convert", *arguments, "-o", tmp_path / "repo", cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "repo").exists()


CONTENT = np.random.default_rng(0).bytes(24_000_000)  # more than two chunks of the library's


@pytest.fixture
def server():
    """A server that breaks off the first answer half-way, and knows ranges."""

    ranges = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            start = int(wanted.split("=")[1].split("-")[0]) if wanted else 0
            ranges.append(start)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            stop = len(CONTENT) // 2 if len(ranges) == 1 else len(CONTENT)
            self.wfile.write(CONTENT[start:stop])
            self.wfile.flush()
            if stop < len(CONTENT):
                self.connection.close()

        def log_message(self, *arguments):
            """Keep the test output clean."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/model.pt", ranges
    httpd.shutdown()


def test_a_broken_download_goes_on_where_it_was_and_is_verified(server, tmp_path):
    url, ranges = server
    source = Download(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    target = download(source, tmp_path / "sub" / "model.pt")
    assert target.read_bytes() == CONTENT
    assert ranges[0] == 0
    assert 0 < ranges[1] <= len(CONTENT) // 2
    assert [path.name for path in target.parent.iterdir()] == ["model.pt"]
    download(source, target)
    assert len(ranges) == 2  # nothing is fetched twice


def test_what_an_earlier_try_fetched_is_kept(server, tmp_path):
    url, ranges = server
    ranges.append(0)  # the server answers in full
    (tmp_path / "model.pt.incomplete").write_bytes(CONTENT[:100_000])
    source = Download(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert download(source, tmp_path / "model.pt").read_bytes() == CONTENT
    assert ranges[1:] == [100_000]


def test_a_download_with_the_wrong_checksum_gets_no_name(server, tmp_path):
    url, _ = server
    with pytest.raises(ConversionError, match="expected 0000"):
        download(Download(url, len(CONTENT), "0" * 64), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_wrong_size_is_not_used(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"short")
    with pytest.raises(ConversionError, match="has 5 bytes, expected 300000"):
        download(Download("http://127.0.0.1:9/model.pt", 300_000, ""), tmp_path / "model.pt")


def test_a_server_that_is_away_is_told_in_a_sentence(tmp_path):
    with pytest.raises(OSError, match="run again to go on"):
        download(Download("http://127.0.0.1:9/model.pt", 300_000, ""), tmp_path / "model.pt")
