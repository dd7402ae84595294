"""Settings are stated once, and reach all who offer them; presets, and what the call makes of old arguments."""

import io
import re
from inspect import signature

import numpy as np
import pytest
import torch
from conftest import ROOT, ddrm_jpeg, jpeg_bytes
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGBlocks, DDRMJPEGPipeline, PiGDMScheduler, Settings
from pipeline_ddrm_jpeg.sampling.scheduling_ddrm import settings_taken
from pipeline_ddrm_jpeg.sampling.session import chosen
from pipeline_ddrm_jpeg.sampling.settings import ABOUT, DEFAULT, settings_of


@pytest.fixture(scope="module")
def data(photo):
    return jpeg_bytes(photo.resize((40, 24)), quality=10)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_setting_reaches_command_modular_form_card_and_call(monkeypatch):
    """And the page, whose test is in test_space.py: its controls need gradio."""
    monkeypatch.setenv("COLUMNS", "400")
    offered = ddrm_jpeg("restore", "--help").stdout
    inputs = {one.name: one for one in DDRMJPEGBlocks().inputs}
    card = (ROOT / "model_card.md").read_text()
    for name, about in ABOUT.items():
        assert (about.options or ("--" + name.replace("_", "-"),))[0] in offered
        assert about.words in offered
        assert about.words in inputs[name].description
        assert f"`{name}`" in card
        assert about.words in card
        with pytest.raises(ValueError, match=f"{name} is"):
            Settings(**{name: "nonsense"})


def test_the_call_has_at_most_eighteen_arguments():
    parameters = signature(DDRMJPEGPipeline.__call__).parameters
    assert len(parameters) - 2 <= 18  # self, and those that moved


def test_a_preset_is_the_default_of_the_class_and_of_the_call(pipe, data):
    assert PRESETS[DEFAULT] == Settings()
    expected = pipe(data, generator=seeded(), output_type="np").images
    for arguments in ({"preset": "balanced"}, {"settings": Settings()}, {"settings": {}}):
        assert np.array_equal(pipe(data, generator=seeded(), output_type="np", **arguments).images, expected)


def test_single_settings_change_single_settings(pipe):
    assert pipe.settings_for(num_samples=2) == Settings(num_samples=2)
    assert pipe.settings_for("best", {"eta": 0.5}, num_samples=4) == PRESETS["best"] | {"eta": 0.5, "num_samples": 4}
    assert pipe.settings_for(settings=PRESETS["paper"], num_samples=8) == PRESETS["paper-average"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slow", None), "preset is 'slow'; it must be one of fast, balanced"),
        (("fast", Settings()), "either preset or whole Settings"),
        ((None, {"steps": 3}), "there is no setting steps; there are num_samples"),
    ],
)
def test_what_is_no_preset_or_setting_is_refused_by_name(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        settings_of(*arguments, {})


def test_the_temperature_follows_steps_and_samples_unless_it_is_given():
    assert [PRESETS[name].noise_scale for name in ("fast", "balanced", "best", "paper")] == [0.7, 0.4, 0.5, 1.0]
    assert Settings(num_inference_steps=1).noise_scale == 1.0
    scales = [Settings(num_inference_steps=steps).noise_scale for steps in range(1, 12)]
    assert scales == sorted(scales, reverse=True)
    assert Settings(num_inference_steps=1, temperature=0.3).noise_scale == 0.3


def test_no_number_of_steps_or_samples_makes_an_image_worse_than_its_file(photo):
    """With the presets made for the embedded prior; single samples of the paper's rule can be worse."""
    pipe = DDRMJPEGPipeline.from_embedded(dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    original = np.asarray(photo.resize((64, 64)), float)
    data = jpeg_bytes(photo.resize((64, 64)), quality=10)

    def error(image):
        return ((np.asarray(image, float) - original) ** 2).mean()

    from_file = error(Image.open(io.BytesIO(data)))
    for preset in ("fast", "balanced", "best"):
        for steps, samples in ((1, 1), (1, 2), (3, 1), (8, 1)):
            image = pipe(
                data, preset=preset, num_inference_steps=steps, num_samples=samples, generator=seeded()
            ).images[0]
            assert error(image) < from_file, (preset, steps, samples)


def test_arguments_of_the_version_before_still_work_and_say_what_to_write(pipe, data):
    new = pipe(data, generator=seeded(), output_type="np", settings={"temperature": 0.2, "eta": 0.5}).images
    with pytest.warns(FutureWarning, match=r"temperature, eta: .* use preset=\.\.\. or settings="):
        old = pipe(data, generator=seeded(), output_type="np", temperature=0.2, eta=0.5).images
    assert np.array_equal(old, new)
    with pytest.warns(FutureWarning, match=r"correction, .*settings="):
        old = pipe(data, generator=seeded(), output_type="np", **PRESETS["fast"]).images
    assert np.array_equal(old, pipe(data, generator=seeded(), output_type="np", preset="fast").images)
    with pytest.warns(FutureWarning, match=r"window_size, window_overlap: .* use pipe.enable_tiling"):
        old = pipe(data, generator=seeded(), output_type="np", window_size=16, window_overlap=4).images
    pipe.enable_tiling(16, 4)
    assert np.array_equal(old, pipe(data, generator=seeded(), output_type="np").images)
    with pytest.raises(TypeError, match="unexpected keyword argument 'picture'"):
        pipe(picture=data)


def test_tiling_is_a_state_of_the_pipeline(pipe, data):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    pipe.enable_tiling(size=16, overlap=0)
    pipe(data, preset="fast")
    assert set(seen) == {(16, 16)}
    seen.clear()
    pipe.disable_tiling()
    pipe(data, preset="fast")
    assert {height * width for height, width in seen} == {48 * 32}  # the whole file, with its padding
    with pytest.raises(ValueError, match="window_size is 15"):
        pipe.enable_tiling(15)


def test_a_sampler_says_its_name_settings_and_cost(pipe):
    ddrm, pigdm = pipe.scheduler, PiGDMScheduler()
    assert [(one.name, one.evaluations_a_step) for one in (ddrm, pigdm)] == [("ddrm", 1), ("pigdm", 3)]
    assert settings_taken(pigdm) < settings_taken(ddrm) <= set(ABOUT)
    left = chosen(pigdm, "balanced", None, {})
    assert (left.correction, left.eta_b, left.num_inference_steps) == ("ddrm", None, 4)
    for name, value in (("eta_b", 0.5), ("correction", "posterior")):
        with pytest.raises(ValueError, match=f"PiGDMScheduler does not take {name}"):
            chosen(pigdm, "paper", {name: value}, {})
    step = signature(pigdm.step).parameters
    assert {name for name in ("eta", "eta_b") if name in step} == settings_taken(pigdm) & {"eta", "eta_b"}


def test_the_commands_sentences_name_its_options():
    said = ddrm_jpeg("restore", ROOT / "examples" / "cat.jpg", "--steps", "30", "--init-timestep", "20")
    assert (said.returncode, said.stderr) == (2, "ddrm-jpeg: --steps is 30; it must be at most --init-timestep, 20\n")
    assert re.search(
        "error.scale is 0.0; it must be a number above 0", ddrm_jpeg("restore", "a.jpg", "--error-scale", "0").stderr
    )
