import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import inks, jpeg_bytes, make_unet, paper
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from diffusers.callbacks import PipelineCallback
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline_ddrm_jpeg import (
    Coefficients,
    DDRMJPEGPipeline,
    DDRMScheduler,
    JPEGFile,
    JPEGFileError,
    JPEGOperator,
    Operator,
    QuantizationOperator,
    observe,
)
from pipeline_ddrm_jpeg.priors import fastest_dtype
from pipeline_ddrm_jpeg.sampling.cmyk import separations
from pipeline_ddrm_jpeg.sampling.denoiser_error import DenoiserError

QUICK = {"num_inference_steps": 3, "init_timestep": 60}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(photo):
    """A 4:2:0 file of 53 x 38 pixels: odd, with chroma of whole blocks and luma without."""
    return jpeg_bytes(photo.resize((53, 38)), quality=20)


def test_defaults_are_the_papers(pipe, data):
    result = paper(pipe, data, generator=seeded())
    assert result.timesteps == [list(range(285, -1, -15))]
    picture = result.images[0]
    assert (picture.mode, picture.size) == ("RGB", (53, 38))
    assert len(result.samples[0]) == 1


def test_the_sampler_is_the_one_of_the_released_program(pipe, reference, monkeypatch):
    """With the analytic denoiser in place of the network's output, a whole run gives the reference sample."""
    x = torch.from_numpy(reference["x"])
    operator = JPEGOperator(10, convention="released")

    def gaussian(sample, timestep, class_labels, return_dict):
        return ((1 - pipe.scheduler.alphas_cumprod[timestep]).sqrt() * sample,)

    last = {}
    monkeypatch.setattr(pipe.unet, "forward", gaussian)
    paper(
        pipe,
        x,
        operator=operator,
        generator=seeded(1234),
        callback_on_step_end=lambda pipeline, i, t, tensors: last.update(tensors),
    )
    expected = torch.from_numpy(reference["gaussian_qf10_eta1.0_etab0.4_n20_t300"])
    torch.testing.assert_close(last["sample"][:1], expected, atol=1e-4, rtol=0)


def test_path_bytes_stream_and_jpegfile_give_the_same(pipe, data, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    sources = [path, str(path), data, io.BytesIO(data), JPEGFile.open(data)]
    pictures = [paper(pipe, source, generator=seeded(), output_type="np", **QUICK).images for source in sources]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_output_types_agree(pipe, data):
    pil, array, tensor = (
        paper(pipe, data, generator=seeded(), output_type=kind, **QUICK).images for kind in ("pil", "np", "pt")
    )
    assert array.shape == (1, 38, 53, 3)
    assert tensor.shape == (1, 3, 38, 53)
    np.testing.assert_array_equal(array[0], tensor[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))


def test_tuple_and_output_say_the_same(pipe, data):
    named = paper(pipe, data, generator=seeded(), output_type="pt", **QUICK)
    (images,) = paper(pipe, data, generator=seeded(), output_type="pt", return_dict=False, **QUICK)
    assert torch.equal(named.images, images)


def test_greyscale_files_give_greyscale_pictures(pipe, photo):
    data = jpeg_bytes(photo.convert("L").resize((53, 38)), quality=20)
    result = paper(pipe, data, generator=seeded(), consistent=True, **QUICK)
    assert (result.images[0].mode, result.images[0].size) == ("L", (53, 38))
    assert result.consistency == [1.0]
    assert paper(pipe, data, generator=seeded(), output_type="np", **QUICK).images.shape == (1, 38, 53, 1)


def test_a_list_gives_what_each_file_gives_alone(pipe, data, photo):
    other = jpeg_bytes(photo.resize((20, 70)), quality=50, subsampling="4:4:4")
    together = paper(pipe, [data, other], generator=[seeded(1), seeded(2)], output_type="pt", **QUICK).images
    alone = [
        paper(pipe, one, generator=seeded(seed), output_type="pt", **QUICK).images[0]
        for seed, one in enumerate([data, other], 1)
    ]
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options", [{}, {"num_samples": 2, "antithetic": True}, {"equivariant": True}, {"sharpness": 0.5}]
)
def test_pictures_with_generators_of_their_own_share_calls_of_the_prior(pipe, photo, options):
    """Results are those of one file at a time but for the order of sums: 1e-6 of the range."""
    sizes = [(40, 40), (47, 48), (33, 40), (20, 70), (100, 56), (40, 24), (24, 40), (48, 48)]
    files = [jpeg_bytes(photo.resize(size), quality=8 + 12 * i) for i, size in enumerate(sizes)]
    options = options | {"num_inference_steps": 3, "init_timestep": "auto", "correction": "posterior"}
    options |= {"output_type": "pt", "window_size": 64, "window_overlap": 16}
    steps, batches = [], []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    alone = [
        paper(
            pipe,
            file,
            generator=seeded(i),
            callback_on_step_end=lambda p, i, t, _: steps.append((p.num_timesteps, int(t))) or {},
            **options,
        )
        for i, file in enumerate(files)
    ]
    windows, one_by_one, seen = sum(batches), len(batches), sorted(steps)
    assert len({result.timesteps[0][0] for result in alone}) > 1, "they start at different timesteps"
    steps.clear(), batches.clear()
    together = paper(
        pipe,
        files,
        generator=[seeded(i) for i in range(len(files))],
        window_batch_size=16,
        callback_on_step_end=lambda p, i, t, _: steps.append((p.num_timesteps, int(t))) or {},
        **options,
    )
    assert (sum(batches), sorted(steps)) == (windows, seen)
    assert max(batches) <= 16
    assert len(batches) <= one_by_one / 2
    for i, result in enumerate(alone):
        assert together.timesteps[i] == result.timesteps[0]
        torch.testing.assert_close(together.images[i], result.images[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.std[i], result.std[0], atol=1e-6, rtol=0)


def test_pictures_that_share_a_generator_are_restored_one_after_the_other(pipe, data):
    shared, alone = seeded(), seeded()
    expected = [paper(pipe, data, generator=alone, output_type="pt", **QUICK).images[0] for _ in range(2)]
    together = paper(pipe, [data, data], generator=shared, output_type="pt", window_batch_size=8, **QUICK).images
    torch.testing.assert_close(together, torch.stack(expected), atol=1e-6, rtol=0)
    assert not torch.equal(*expected)


@pytest.mark.parametrize(("quality", "subsampling"), [(10, "4:2:0"), (60, "4:4:4")])
def test_the_expected_error_is_about_the_actual_one_where_it_is(photo, quality, subsampling):
    pipe = DDRMJPEGPipeline.from_embedded()
    data = jpeg_bytes(photo, quality=quality, subsampling=subsampling)
    result = pipe(data, output_type="np", generator=seeded(), preset="fast")
    error = (result.images[0] - np.asarray(photo) / 255) ** 2
    expected = result.expected_error[0] ** 2
    assert expected.shape == error.shape
    assert 0.4 < np.sqrt(error.mean() / expected.mean()) < 1.7
    order = expected.mean(axis=2).flatten().argsort()
    of_parts = [error.mean(axis=2).flatten()[part].mean() for part in np.array_split(order, 4)]
    assert of_parts == sorted(of_parts)
    assert of_parts[-1] > 1.5 * of_parts[0]


def test_the_average_is_the_mean_of_samples_of_which_the_first_is_the_single_one(pipe, data):
    single = paper(pipe, data, generator=seeded(), output_type="np", **QUICK)
    average = paper(pipe, data, generator=seeded(), output_type="np", num_samples=3, **QUICK)
    np.testing.assert_allclose(average.samples[0][0], single.images[0], atol=1e-5)
    np.testing.assert_allclose(average.images[0], np.mean(average.samples[0], axis=0), atol=1e-6)
    np.testing.assert_allclose(average.std[0], np.std(average.samples[0], axis=0), atol=1e-6)
    assert average.std[0].mean() > 1e-3
    assert single.std[0].max() == 0
    assert not np.allclose(average.samples[0][1], average.samples[0][2], atol=1e-2)


def test_samples_do_not_depend_on_how_they_are_grouped(pipe, data, monkeypatch, one_thread):
    together = paper(pipe, data, generator=seeded(), output_type="pt", num_samples=3, **QUICK).samples[0]
    monkeypatch.setattr(pipe, "pixels_in_a_pass", 1)
    one_by_one = paper(pipe, data, generator=seeded(), output_type="pt", num_samples=3, **QUICK).samples[0]
    for ours, theirs in zip(together, one_by_one, strict=True):
        assert torch.equal(ours, theirs)


def test_antithetic_samples_come_in_pairs_whose_noise_cancels(pipe, data):
    pipe.unet.conv_out.weight.data.zero_()
    pipe.unet.conv_out.bias.data.zero_()  # it predicts no noise, so that without correction a sample is linear in it
    linear = {**QUICK, "eta_b": 0.0, "output_type": "pt"}

    def run(**arguments):
        return paper(pipe, data, generator=torch.Generator().manual_seed(1), **linear, **arguments)

    pair = run(num_samples=2, antithetic=True)
    assert torch.equal(pair.samples[0][0], run().samples[0][0])
    assert not torch.equal(pair.samples[0][0], pair.samples[0][1])
    inside = (pair.samples[0][0] > 0) & (pair.samples[0][0] < 1) & (pair.samples[0][1] > 0) & (pair.samples[0][1] < 1)
    torch.testing.assert_close(pair.images[0][inside], run(temperature=0.0).images[0][inside])
    three = run(num_samples=3, antithetic=True)
    assert torch.equal(three.samples[0][1], pair.samples[0][1])
    assert not torch.equal(three.samples[0][2], pair.samples[0][0])


def test_antithetic_samples_do_not_depend_on_how_they_are_grouped(pipe, data, monkeypatch):
    def run():
        generator = torch.Generator().manual_seed(1)
        return paper(
            pipe, data, generator=generator, num_samples=4, antithetic=True, output_type="pt", **QUICK
        ).samples[0]

    together = run()
    monkeypatch.setattr(pipe, "pixels_in_a_pass", 1)
    assert all(torch.equal(a, b) for a, b in zip(together, run(), strict=True))


def test_without_noise_all_samples_are_alike(pipe, data):
    assert paper(pipe, data, num_samples=2, temperature=0.0, **QUICK).std[0].max() == 0


def test_an_automatic_start_is_later_for_finer_files(pipe, photo):
    files = [jpeg_bytes(photo.resize((40, 24)), quality=quality) for quality in (5, 30, 90)]
    starts = []

    def note(pipe, i, t, tensors):
        if i == 0:
            starts.append(int(t))
        return {}

    automatic = {"num_inference_steps": 2, "init_timestep": "auto", "timestep_spacing": "log", "output_type": "pt"}
    generators = [torch.Generator().manual_seed(7) for _ in files]
    together = paper(pipe, files, generator=generators, callback_on_step_end=note, **automatic)
    assert starts == sorted(starts, reverse=True)
    assert starts[0] > 120 > 90 > starts[1] > 50 > starts[2] > 10
    alone = paper(pipe, files[2], generator=torch.Generator().manual_seed(7), **automatic)
    assert torch.equal(alone.images[0], together.images[2])


def test_an_automatic_start_of_an_operator_that_cannot_tell_is_the_schedulers(pipe):
    class Keep(Operator):
        def encode(self, x):
            return x

        def decode(self, y):
            return y

    x = torch.zeros(1, 3, 16, 16)
    automatic = {"num_inference_steps": 3, "init_timestep": "auto"}
    assert paper(pipe, x, operator=Keep(), **automatic).timesteps == [[200, 100, 0]]
    coarse, fine = (paper(pipe, x, operator=QuantizationOperator(bits), **automatic).timesteps[0] for bits in (1, 7))
    assert coarse[0] > fine[0]


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(pipe, data):
    one, again, other = (paper(pipe, data, generator=seeded(s), output_type="pt", **QUICK).images for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_without_a_generator_the_global_seed_counts(pipe, data):
    torch.manual_seed(7)
    unseeded = paper(pipe, data, output_type="pt", num_samples=2, **QUICK).images
    assert torch.equal(
        unseeded, paper(pipe, data, generator=seeded(7), output_type="pt", num_samples=2, **QUICK).images
    )


@pytest.mark.parametrize("quality", [1, 5, 50, 95, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_consistent_results_keep_every_coefficient_of_the_file(pipe, photo, quality, subsampling):
    data = jpeg_bytes(photo.crop((60, 60, 161, 131)), quality=quality, subsampling=subsampling)
    result = paper(pipe, data, generator=seeded(), consistent=True, num_samples=2, output_type="np", **QUICK)
    assert result.consistency == [1.0]
    assert 0 <= result.images.min() <= result.images.max() <= 1
    if quality <= 50:
        assert result.consistency_8bit[0] >= 0.98


@pytest.mark.parametrize("kind", ["noise", "black and white"])
@pytest.mark.parametrize("quality", [5, 50, 90, 100])
def test_even_saturated_noise_keeps_every_coefficient(pipe, kind, quality):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    noise = noise if kind == "noise" else noise[..., 0] // 128 * 255
    data = jpeg_bytes(Image.fromarray(noise), quality=quality)
    result = paper(pipe, data, generator=seeded(), consistent=True, output_type="np", **QUICK)
    assert result.consistency == [1.0]
    assert -0.1 < result.images.min() <= result.images.max() < 1.1
    picture = paper(pipe, data, generator=seeded(), consistent=True, **QUICK).images[0]
    decoded = Image.open(io.BytesIO(data))
    agreement = np.corrcoef(np.asarray(picture, dtype=float).ravel(), np.asarray(decoded, dtype=float).ravel())
    assert agreement[0, 1] > 0.8  # nothing wrapped around in 8 bits


def test_what_is_reported_as_consistency_is_that_of_the_picture(pipe, photo):
    data = jpeg_bytes(photo.crop((0, 0, 64, 48)), quality=30)
    result = paper(pipe, data, generator=seeded(), eta_b=0.0, **QUICK)
    seen = observe(data)
    x = torch.from_numpy(np.array(result.images[0])).permute(2, 0, 1)[None] / 127.5 - 1
    measured = seen.operator.consistency(x, seen.y)
    assert result.consistency_8bit[0] == pytest.approx(measured, abs=1e-3)
    assert measured < 0.99  # nothing pulled the image towards the file


def test_nearest_correction_with_full_weight_agrees_with_the_file(pipe, data):
    result = paper(pipe, data, generator=seeded(), correction="nearest", eta_b=1.0, **QUICK)
    assert result.consistency[0] > 0.99


POSTERIOR = {"correction": "posterior", "error_scale": 3.0, "temperature": 0.6, **QUICK}


@pytest.mark.parametrize("quality", [5, 40, 97])
def test_a_posterior_mean_needs_no_projection_to_agree_with_the_file(pipe, photo, quality):
    picture = photo.resize((53, 38)).point(lambda value: 64 + value // 2)  # away from black and white, which clip
    states = []
    settings = {"callback_on_step_end": lambda p, i, t, tensors: states.append(tensors["sample"]), **POSTERIOR}
    seen = observe(jpeg_bytes(picture, quality=quality))
    paper(pipe, measurement=seen.y, operator=seen.operator, generator=seeded(), **settings)
    assert seen.operator.consistency(states[-1], seen.y) == 1.0
    assert quality == 5 or seen.operator.consistency(states[0], seen.y) < 1.0, "but for the noise of a step"


def test_noise_accounting_adds_less_noise(pipe, data):
    states = {}

    def note(pipeline, i, t, tensors):
        states.setdefault(t.item(), []).append(tensors["sample"])

    for accounting in (True, False):
        options = {"noise_accounting": accounting, "callback_on_step_end": note, **POSTERIOR, "error_scale": 10.0}
        paper(pipe, data, generator=seeded(), **options)
    with_accounting, without = states[40]
    assert with_accounting.std() < without.std()


@pytest.mark.parametrize("ycck", [False, True], ids=["CMYK", "YCCK"])
def test_four_inks_are_their_colours_times_their_black(pipe, photo, ycck):
    exif = Image.Exif()
    exif[0x010E] = "print"
    data = inks(photo.resize((53, 38)), ycck, quality=20, exif=exif, icc_profile=b"profile".ljust(200, b"\0"))
    settings = {**POSTERIOR, "num_samples": 2, "sharpness": 0.5}

    def restored(source, kind, **options):
        return paper(pipe, source, generator=seeded(), output_type=kind, **settings, **options)

    parts = restored(list(separations(JPEGFile.open(data))), "np")

    def printed(colours, black):
        return np.clip(1 - colours if ycck else colours, 0, 1) * np.clip(black, 0, 1)

    array, tensor = restored(data, "np"), restored(data, "pt")
    assert np.array_equal(array.images[0], printed(*parts.images))
    for sample, *pair in zip(array.samples[0], *parts.samples, strict=True):
        assert np.array_equal(sample, printed(*pair))
    for std in (array.std[0], array.expected_error[0]):
        assert std.shape == array.images[0].shape == (38, 53, 3)
        assert std.mean() > 0
    assert array.timesteps == parts.timesteps[:1]
    for name in ("consistency", "consistency_8bit"):
        assert min(parts[name]) <= array[name][0] <= max(parts[name])
    for one, other in ((tensor.images, array.images), (tensor.std[0][None], array.std[0][None])):
        assert np.array_equal(one.permute(0, 2, 3, 1).numpy(), other)
    ((picture,),) = restored(data, "pil", return_dict=False)
    assert np.array_equal(picture, np.rint(255 * array.images[0]).astype(np.uint8))
    assert picture.info.keys() == {"exif"}


def test_four_inks_among_other_files_come_out_as_alone(pipe, data, photo):
    sources = [data, inks(photo.resize((40, 40)), True, quality=30), data]
    settings = {"output_type": "pt", "num_samples": 2, **QUICK}
    together = paper(pipe, sources, generator=[seeded(i) for i in range(3)], window_batch_size=8, **settings)
    for i, source in enumerate(sources):
        alone = paper(pipe, source, generator=seeded(i), **settings)
        assert torch.allclose(together.images[i], alone.images[0], atol=1e-6)
        assert together.consistency[i] == pytest.approx(alone.consistency[0], abs=1e-3)
    shared, one_by_one = seeded(), seeded()
    together = paper(pipe, sources, generator=shared, **settings).images
    for one, source in zip(together, sources, strict=True):
        assert torch.equal(one, paper(pipe, source, generator=one_by_one, **settings).images[0])


def test_sharpness_adds_texture_and_keeps_the_file(pipe, data):
    settings = {"output_type": "pt", "consistent": True, **POSTERIOR}
    pictures = [paper(pipe, data, generator=seeded(), sharpness=s, **settings) for s in (0.0, 0.5, 1.0)]
    assert [result.consistency for result in pictures] == [[1.0]] * 3
    moves = [(result.images - pictures[0].images).square().mean() for result in pictures]
    assert 0 == moves[0] < moves[1] < moves[2]
    assert torch.equal(pictures[0].samples[0][0], pictures[2].samples[0][0]), "samples are as they were"


def test_equivariant_sampling_shows_the_prior_other_views(pipe, data, monkeypatch):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    settings = {"num_samples": 3, "output_type": "pt", **POSTERIOR, "temperature": 0.0}
    pictures = []
    for pixels in (1, 2**22):
        monkeypatch.setattr(pipe, "pixels_in_a_pass", pixels)
        pictures.append(paper(pipe, data, generator=seeded(), equivariant=True, **settings).images)
    assert torch.equal(*pictures)
    assert {tuple(state.shape[-2:]) for state in seen} == {(48, 64), (64, 48)}
    plain = paper(pipe, data, generator=seeded(), **settings)
    assert not torch.equal(plain.images, pictures[0])
    assert plain.std[0].max() == 0  # no noise, and every sample sees the same


def test_the_error_of_a_prior_is_loaded_with_it_and_saved_again(prior_folder, data, tmp_path):
    error = DenoiserError(torch.tensor([0.1, 1.0]), torch.full((2, 2, 8, 8), 0.05)).to_config()
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler(), denoiser_error=error)
    pipe.save_pretrained(tmp_path / "saved")
    again = DDRMJPEGPipeline.from_prior(tmp_path / "saved", dtype="float32")
    assert again.config.denoiser_error == error
    alone = DDRMJPEGPipeline.from_prior(prior_folder, dtype="float32")
    pictures = [paper(p, data, generator=seeded(), output_type="pt", **POSTERIOR).images for p in (pipe, again, alone)]
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-5, rtol=0)
    assert not torch.equal(pictures[0], pictures[2])
    assert DDRMJPEGPipeline.from_embedded().config.denoiser_error["luma"]


def test_a_picture_without_its_file_is_refused_and_told_why(pipe, photo):
    for picture in (photo, torch.zeros(1, 3, 16, 16), np.zeros((16, 16, 3))):
        with pytest.raises(TypeError, match="no longer carries the coefficients"):
            paper(pipe, picture)


def test_a_picture_with_an_operator_is_measured_and_restored(pipe, photo):
    result = paper(
        pipe, photo.resize((53, 38)), operator=JPEGOperator(10), generator=seeded(), consistent=True, **QUICK
    )
    assert result.images[0].size == (53, 38)
    assert result.consistency == [1.0]


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_dequantization_runs_through_the_same_pipeline(pipe, photo, bits):
    operator = QuantizationOperator(bits)
    picture = np.asarray(photo.resize((53, 38)))
    coarse = Image.fromarray(picture // operator.step * operator.step)
    result = paper(pipe, coarse, operator=operator, generator=seeded(), consistent=True, **QUICK)
    np.testing.assert_array_equal(np.asarray(result.images[0]) // operator.step, picture // operator.step)


def test_a_batch_of_tensors_is_one_batch(pipe):
    x = torch.rand(2, 3, 24, 40, generator=seeded()) * 2 - 1
    result = paper(pipe, x, operator=JPEGOperator(30), generator=seeded(), output_type="pt", num_samples=2, **QUICK)
    assert result.images.shape == (2, 3, 24, 40)
    assert [len(samples) for samples in result.samples] == [2, 2]
    assert len(result.consistency) == 2
    listed = paper(
        pipe, x, operator=JPEGOperator(30), generator=[seeded(1), seeded(2)], output_type="pt", **QUICK
    ).images
    alone = paper(pipe, x[1], operator=JPEGOperator(30), generator=seeded(2), output_type="pt", **QUICK).images
    torch.testing.assert_close(listed[1], alone[0])


def test_callbacks_see_every_step_and_may_change_the_state(pipe, data):
    seen = []

    def zero(pipeline, i, t, tensors):
        seen.append((i, int(t), sorted(tensors)))
        return {"sample": torch.zeros_like(tensors["sample"])} if i == 2 else tensors

    names = ["sample", "pred_original_sample"]
    result = paper(
        pipe, data, callback_on_step_end=zero, callback_on_step_end_tensor_inputs=names, output_type="pt", **QUICK
    )
    assert seen == [(0, 40, sorted(names)), (1, 20, sorted(names)), (2, 0, sorted(names))]
    assert torch.equal(result.images, torch.full_like(result.images, 0.5))


def test_what_a_callback_returns_replaces_in_whatever_precision(pipe, data):
    def half(pipeline, i, t, tensors):
        return {name: tensor.half() for name, tensor in tensors.items()}

    def grey_in_the_end(pipeline, i, t, tensors):
        return {"pred_original_sample": tensors["pred_original_sample"] - tensors["sample"]} if i == 2 else {}

    options = {"callback_on_step_end_tensor_inputs": ["sample", "pred_original_sample"], "output_type": "pt", **QUICK}
    plain, halves, moved = (
        paper(pipe, data, generator=seeded(), callback_on_step_end=callback, **options).images
        for callback in (None, half, grey_in_the_end)
    )
    torch.testing.assert_close(halves, plain, atol=0.02, rtol=0)
    assert torch.equal(moved, torch.full_like(moved, 0.5))


def test_a_replaced_image_moves_the_state_by_its_share_of_the_signal(pipe, data):
    states = []

    def brighter(pipeline, i, t, tensors):
        states.append(tensors["sample"])
        return {"pred_original_sample": tensors["pred_original_sample"] + 0.25} if i == 0 else {}

    names = ["sample", "pred_original_sample"]
    paper(pipe, data, generator=seeded(), callback_on_step_end=lambda *_: states.append(_[3]["sample"]), **QUICK)
    kept, states = states, []
    unet, inputs = pipe.unet, []
    hook = unet.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    paper(
        pipe, data, generator=seeded(), callback_on_step_end=brighter, callback_on_step_end_tensor_inputs=names, **QUICK
    )
    hook.remove()
    signal = pipe.scheduler.alphas_cumprod[20].sqrt()
    torch.testing.assert_close(inputs[1][:, :, :38, :53], kept[0][:, :, :38, :53] + 0.25 * signal)


@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_pipeline_without_a_part_says_so(pipe, part):
    with pytest.raises(ValueError, match=f"{part} is None"):
        DDRMJPEGPipeline(**pipe.components | {part: None})


def test_the_progress_bar_counts_every_step_of_every_sample(pipe, data, capsys):
    pipe.set_progress_bar_config(disable=False)
    paper(pipe, [data, data], num_samples=3, **QUICK)
    assert "18/18" in capsys.readouterr().err
    paper(pipe, data, window_size=32, window_overlap=8, **QUICK)  # 38 x 53 pixels are 2 x 3 windows
    assert "18/18" in capsys.readouterr().err


def test_a_bfloat16_prior_leaves_the_sampler_in_float32(data):
    pipe = DDRMJPEGPipeline(unet=make_unet().to(torch.bfloat16), scheduler=DDRMScheduler())
    states = []
    paper(pipe, data, callback_on_step_end=lambda p, i, t, tensors: states.append(tensors["sample"].dtype), **QUICK)
    assert set(states) == {torch.float32}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells there what the processor has")
def test_the_fastest_dtype_is_that_of_the_processor_and_can_be_asked_for(prior_folder):
    flags = Path("/proc/cpuinfo").read_text().split()
    units = "amx_bf16" in flags or "avx512_bf16" in flags
    assert fastest_dtype() == (torch.bfloat16 if units else torch.float32)
    assert DDRMJPEGPipeline.from_prior(prior_folder, dtype="auto").unet.dtype == fastest_dtype()
    assert fastest_dtype("meta") == torch.float32


def test_weights_at_odd_addresses_get_memory_of_their_own(prior_folder, tmp_path):
    folder = shutil.copytree(prior_folder, tmp_path / "prior")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    stored, start = path.read_bytes(), 8 + int.from_bytes(path.read_bytes()[:8], "little")
    header = stored[8:start] + b" " * 12  # moves the weights behind it
    path.write_bytes(len(header).to_bytes(8, "little") + header + stored[start:])
    assert any(p.data_ptr() % 64 for p in UNet2DModel.from_pretrained(folder, subfolder="unet").parameters())
    unet = DDRMJPEGPipeline.from_prior(folder).unet
    assert not any(p.data_ptr() % 64 for p in unet.parameters())
    assert all(map(torch.equal, unet.parameters(), DDRMJPEGPipeline.from_prior(prior_folder).unet.parameters()))


def test_large_pictures_go_through_windows(pipe, photo):
    result = paper(pipe, jpeg_bytes(photo.resize((150, 90)), quality=20), window_size=64, window_overlap=16, **QUICK)
    assert result.images[0].size == (150, 90)


def test_metadata_travels_with_the_picture(pipe, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = paper(pipe, jpeg_bytes(photo.resize((24, 16)), exif=exif, icc_profile=b"profile"), **QUICK).images[0]
    assert picture.size == (24, 16)  # as stored
    assert picture.info["icc_profile"] == b"profile"
    assert picture.getexif()[0x0112] == 6


def test_schedulers_of_other_pipelines_are_converted(data):
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDIMScheduler(beta_end=0.01))
    assert type(pipe.scheduler) is DDRMScheduler
    assert pipe.scheduler.config.beta_end == 0.01


@pytest.mark.parametrize("kind", [ScoreSdeVeScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler])
def test_schedulers_of_another_kind_are_refused_by_name(pipe, kind, tmp_path):
    for attempt in (
        lambda: DDRMJPEGPipeline(unet=pipe.unet, scheduler=kind()),
        lambda: setattr(pipe, "scheduler", kind()),
        lambda: DDRMJPEGPipeline.from_prior(tmp_path),
    ):
        pipe.unet.save_pretrained(tmp_path / "unet")
        kind().save_pretrained(tmp_path / "scheduler")
        with pytest.raises(ValueError, match=f"the prior's scheduler is a {kind.__name__}"):
            attempt()


def test_a_scheduler_put_in_later_is_converted_too(pipe, data):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert type(pipe.scheduler) is DDRMScheduler
    assert paper(pipe, data, num_inference_steps=3, init_timestep=60).timesteps == [[59, 39, 19]]


class HalfWay(SchedulerMixin, ConfigMixin):
    """A scheduler of a stranger, from the protocol in docs/architecture.md: each step goes half of the way to x0'."""

    @register_to_config
    def __init__(self, sigma: float = 0.5):
        self.timesteps = torch.arange(0)

    def set_timesteps(self, num_inference_steps, init_timestep=None, timestep_spacing=None):
        self.timesteps = torch.arange(num_inference_steps).flip(0)

    def add_noise(self, original_samples, noise, timesteps):
        return original_samples + self.config.sigma * noise

    def step(self, model_output, timestep, sample, project=None, noise=None, return_dict=True):
        x0 = sample - self.config.sigma * model_output
        corrected = project(x0)
        return (sample + corrected) / 2 if timestep else corrected, x0


def test_any_scheduler_of_the_protocol_samples_and_is_saved_and_loaded(data, tmp_path):
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=HalfWay(sigma=0.2))
    assert type(pipe.scheduler) is HalfWay
    settings = {"num_inference_steps": 4, "correction": "nearest", "num_samples": 2, "antithetic": True}
    result = paper(pipe, data, generator=seeded(), **settings)
    assert result.timesteps == [[3, 2, 1, 0]]
    assert result.consistency[0] > 0.99
    pipe.save_pretrained(tmp_path)
    assert HalfWay.from_pretrained(tmp_path, subfolder="scheduler").config.sigma == 0.2
    with pytest.raises(ValueError, match="HalfWay does not take sharpness"):
        paper(pipe, data, generator=seeded(), sharpness=0.5, **settings)


class Uphill(HalfWay):
    """A scheduler of a stranger that asks for the gradient, as the protocol has it."""

    needs_gradient = True

    def step(self, model_output, timestep, sample, project=None, noise=None, return_dict=True):
        x0 = sample - self.config.sigma * model_output
        (direction,) = torch.autograd.grad((project(x0).detach() - x0).square().sum(), sample)
        return sample - direction / 4, x0  # with their graphs, which the pipeline drops


def test_a_scheduler_of_the_protocol_may_ask_for_the_gradient(data):
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=Uphill(sigma=0.2))
    states = []

    def note(pipeline, i, t, tensors):
        states.extend(tensors.values())

    settings = {"num_inference_steps": 8, "output_type": "pt", "callback_on_step_end": note}
    names = ["sample", "pred_original_sample"]
    result = paper(pipe, data, generator=seeded(), callback_on_step_end_tensor_inputs=names, **settings)
    assert not any(state.requires_grad for state in states)
    assert result.images.isfinite().all()
    pipe.scheduler = HalfWay(sigma=0.2)
    with torch.inference_mode():
        assert paper(pipe, data, **QUICK).images


def test_a_measurement_can_be_handed_in(pipe, data):
    seen = observe(data)
    settings = {"generator": seeded(), "output_type": "pt", "consistent": True, **QUICK}
    of_file = paper(pipe, data, **settings | {"generator": seeded()}).images
    handed = paper(pipe, measurement=seen.y, operator=seen.operator, size=seen.size, **settings).images
    assert torch.equal(of_file, handed)
    twice = Coefficients(tuple(part.repeat(2, 1, 1, 1, 1) for part in seen.y.levels))
    generators = [seeded(), seeded(1)]
    both = paper(pipe, measurement=twice, operator=seen.operator, **settings | {"generator": generators})
    assert both.images.shape == (2, 3, 48, 64)  # whole MCUs: no size was given
    torch.testing.assert_close(both.images[:1, :, :38, :53], of_file, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measurement": 1}, "give operator="),
        ({"image": b"x", "measurement": 1, "operator": JPEGOperator(10)}, "not both"),
        ({"image": b"x", "size": (1, 1)}, "size goes with measurement"),
        (
            {"measurement": torch.zeros(1, 3, 8, 8), "operator": QuantizationOperator(), "size": (9, 8)},
            r"size is \(9, 8\); it must be \(height, width\), at most the measurement's \(8, 8\)",
        ),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        paper(pipe, **arguments)


def test_interrupting_ends_the_sampling_with_what_is_there(pipe, data):
    calls = []

    def stop(pipeline, i, t, tensors):
        calls.append(i)
        pipeline._interrupt = i == 1

    stopped = paper(pipe, data, generator=seeded(), num_inference_steps=9, init_timestep=90, callback_on_step_end=stop)
    assert calls == [0, 1]
    assert stopped.images[0].size == (53, 38)
    assert pipe.interrupt
    paper(pipe, data, callback_on_step_end=lambda *_: calls.append("again"), **QUICK)
    assert calls[2:] == ["again"] * 3


def test_callbacks_of_diffusers_get_the_tensors_they_name(pipe, data):
    class Watch(PipelineCallback):
        tensor_inputs: ClassVar = ["pred_original_sample"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append((step_index, pipeline.num_timesteps, *callback_kwargs))
            return callback_kwargs

    seen = []
    paper(pipe, data, callback_on_step_end=Watch(cutoff_step_ratio=1.0), **QUICK)
    assert seen == [(i, 3, "pred_original_sample") for i in range(3)]
    paper(pipe, data, callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=None, **QUICK)


def test_two_threads_share_a_pipeline(pipe, data):
    def restore(steps):
        settings = {"num_inference_steps": steps, "init_timestep": 10 * steps, "output_type": "pt"}
        return paper(pipe, data, generator=seeded(), **settings).images

    expected = {steps: restore(steps) for steps in (3, 7)}
    with ThreadPoolExecutor(2) as threads:
        for steps, found in [(steps, threads.submit(restore, steps)) for steps in (3, 7) * 6]:
            assert torch.equal(found.result(), expected[steps])


def test_a_prior_is_loaded_from_a_folder(prior_folder, data):
    pipe = DDRMJPEGPipeline.from_prior(prior_folder, dtype=torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
    assert DDRMJPEGPipeline.from_prior(prior_folder, dtype="bfloat16").unet.dtype == torch.bfloat16
    assert DDRMJPEGPipeline.from_prior(prior_folder, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    for wrong in ("bfloat61", torch.int8):
        with pytest.raises(ValueError, match='it must be "auto" or a floating-point type'):
            DDRMJPEGPipeline.from_prior(prior_folder, dtype=wrong)
    assert paper(pipe, data, **QUICK).images[0].size == (53, 38)
    with pytest.raises(OSError, match="nowhere"):
        DDRMJPEGPipeline.from_prior("nowhere/at-all", local_files_only=True)


@pytest.mark.parametrize("count", [0, 2])
def test_a_single_picture_takes_one_generator(pipe, data, count):
    with pytest.raises(ValueError, match=f"{count} generators for 1 images"):
        paper(pipe, data, generator=[seeded() for _ in range(count)], **QUICK)


def test_weights_that_do_not_fit_their_config_are_refused_by_name(prior_folder, tmp_path):
    shutil.copytree(prior_folder, tmp_path / "prior")
    (weights,) = (tmp_path / "prior" / "unet").glob("*.safetensors")
    state = load_file(weights)
    state["strange.weight"] = state["conv_out.bias"].clone()
    save_file(state, weights)
    with pytest.raises(OSError, match=r"strange\.weight is unexpected"):
        DDRMJPEGPipeline.from_prior(tmp_path / "prior")
    del state["strange.weight"], state["conv_out.bias"]
    save_file(state, weights)
    with pytest.raises(OSError, match="do not fit the config"):
        DDRMJPEGPipeline.from_prior(tmp_path / "prior")


def test_tensors_that_are_no_pictures_are_refused(pipe):
    operator = JPEGOperator(10)
    with pytest.raises(ValueError, match=r"between 0 and 255; an image's must lie in \[-1, 1\]"):
        paper(pipe, torch.linspace(0, 255, 3 * 256).reshape(3, 16, 16), operator=operator)
    for wrong in (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.full((1, 3, 16, 16), float("nan"))):
        with pytest.raises(ValueError, match="finite floating-point"):
            paper(pipe, wrong, operator=operator)
    with pytest.raises(TypeError, match="ndarray"):
        paper(pipe, np.zeros((16, 16, 3)), operator=operator)


def test_an_empty_list_is_refused(pipe):
    with pytest.raises(ValueError, match="empty"):
        paper(pipe, [])


def test_broken_files_raise_the_error_of_the_reader(pipe):
    with pytest.raises(JPEGFileError, match="not a JPEG"):
        paper(pipe, b"hello")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"correction": "best"}, "correction is 'best'"),
        ({"output_type": "latent"}, "output_type is 'latent'"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta_b": -0.1}, "eta_b is -0.1"),
        ({"sharpness": 2}, "sharpness is 2; it must be between 0 and 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"init_timestep": 2000}, "init_timestep is 2000"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "latents"),
        ({"generator": [seeded()] * 3}, "generators for 2 images"),
        ({"window_size": 33}, "window_size is 33"),
        ({"window_batch_size": -1}, "batch_size of tiling is -1"),
        ({"window_size": 32, "window_overlap": 32}, "overlap is 32"),
    ],
)
def test_arguments_are_checked(pipe, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        paper(pipe, [data, data], **arguments)


def test_samples_are_the_same_to_the_bit_however_they_share_passes(pipe, photo, monkeypatch):
    data = jpeg_bytes(photo.resize((40, 24)), quality=20)
    settings = {"num_samples": 5, "num_inference_steps": 2, "init_timestep": 60, "window_size": 32, "output_type": "pt"}
    pictures = []
    for pixels in (1, 2 * 48 * 32, 2**22):
        monkeypatch.setattr(pipe, "pixels_in_a_pass", pixels)
        pictures.append(paper(pipe, data, generator=torch.Generator().manual_seed(0), **settings).images)
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("name", "value"), [("num_samples", 2.5), ("num_inference_steps", 2.5), ("init_timestep", 40.5)]
)
def test_fractions_where_whole_numbers_are_meant_are_refused(pipe, photo, name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be a whole number"):
        paper(pipe, jpeg_bytes(photo.resize((16, 16))), **{name: value})


def test_a_compiled_prior_restores_the_same_picture(photo):
    """With dynamo's own backend, which traces the network as the real ones do, but needs no C++ compiler."""
    options = {"num_inference_steps": 2, "init_timestep": 20, "window_size": 128, "window_overlap": 32}

    def restore(pipe):
        return paper(pipe, data, **options, generator=torch.Generator().manual_seed(0)).images[0]

    data = jpeg_bytes(photo.resize((160, 120)), quality=20)
    pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler())
    expected = restore(pipe)
    pipe.unet.compile(backend="eager", fullgraph=True)
    assert restore(pipe) == expected


@pytest.mark.parametrize("correction", ["ddrm", "nearest", "posterior"])
def test_torchs_default_dtype_changes_nothing(pipe, photo, correction):
    data = jpeg_bytes(photo.resize((40, 24)), quality=20)
    options = {"num_samples": 2, "antithetic": True, "temperature": 0.7, "eta": 0.5, "consistent": True}
    windows = {"window_size": 32, "window_overlap": 8, "output_type": "pt"}

    def run():
        again = DDRMJPEGPipeline(unet=pipe.unet, scheduler=DDRMScheduler())
        return paper(again, data, generator=seeded(), correction=correction, **options, **windows, **QUICK)

    expected = run()
    for default in (torch.float64, torch.bfloat16):
        try:
            torch.set_default_dtype(default)
            result = run()
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(result.images, expected.images)
        assert torch.equal(result.std[0], expected.std[0])
        assert torch.equal(result.expected_error[0], expected.expected_error[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", None),
        ("num_samples", -1),
        ("num_inference_steps", None),
        ("temperature", "hot"),
        ("eta", "a"),
        ("window_overlap", -1),
        ("window_overlap", 1.5),
        ("window_batch_size", -1),
        ("init_timestep", -1),
        ("generator", 5),
    ],
)
def test_what_an_argument_cannot_be_is_told_by_its_name(pipe, data, name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name.removeprefix('window_')}.* must be"):
        paper(pipe, data, **{**QUICK, name: value})
