"""Pseudoinverse guidance, against what is known in closed form: the posterior under a Gaussian prior."""

import copy

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, make_unet, paper
from diffusers import DDIMScheduler

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler, PiGDMScheduler
from pipeline_ddrm_jpeg.degradations.operator import Downsampling
from pipeline_ddrm_jpeg.sampling.tiling import predict

QUICK = {"num_inference_steps": 3, "init_timestep": 60, "output_type": "pt"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def guided() -> DDRMJPEGPipeline:
    pipeline = DDRMJPEGPipeline(unet=make_unet(), scheduler=PiGDMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def data(photo):
    return jpeg_bytes(photo.resize((53, 38)), quality=20)


def gaussian_noise(sample: torch.Tensor, alpha: torch.Tensor, spread: float) -> torch.Tensor:
    """What the perfect denoiser of images of `N(0, spread^2 I)` says is noise in a state."""
    return (1 - alpha).sqrt() / (spread**2 * alpha + 1 - alpha) * sample


@pytest.mark.parametrize("timestep", [600, 300, 45])
@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_the_guidance_leads_to_the_posterior_mean_of_a_gaussian_prior(timestep, spread):
    """`x0 + (1 - alpha) / sqrt(alpha) g / r_t^2` (Tweedie's formula) against conditioning a Gaussian on `y`."""
    scheduler, operator = PiGDMScheduler(), Downsampling(2)
    scheduler.set_timesteps(timesteps=[timestep, timestep // 2])
    alpha, alpha_next = (scheduler.alphas_cumprod[t].double() for t in (timestep, timestep // 2))
    sample = torch.randn(1, 3, 4, 4, generator=seeded(), dtype=torch.float64).requires_grad_()
    y = operator.encode(spread * torch.randn(1, 3, 4, 4, generator=seeded(1), dtype=torch.float64))

    def step(**options):
        return scheduler.step(gaussian_noise(sample, alpha, spread), timestep, sample, eta=0.0, **options)

    free, pulled = step(), step(project=lambda x0: operator.project(x0, y))
    guidance = (pulled.prev_sample - free.prev_sample) / (alpha * alpha_next).sqrt()
    variance = spread**2 * (1 - alpha) / (spread**2 * alpha + 1 - alpha)  # r_t^2: of x0 given x_t
    found = pulled.pred_original_sample + (1 - alpha) / alpha.sqrt() * guidance / variance

    keep = np.stack([operator.encode(x.reshape(1, 3, 4, 4)).flatten().numpy() for x in torch.eye(48).double()], 1)
    mean = (variance / (1 - alpha) * alpha.sqrt() * sample).detach().flatten().numpy()  # of x0 given x_t
    gain = keep.T @ np.linalg.inv(keep @ keep.T)
    expected = mean + gain @ (y.flatten().numpy() - keep @ mean)
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_a_step_is_that_of_the_papers_algorithm(eta):
    scheduler, operator = PiGDMScheduler(), Downsampling(2)
    scheduler.set_timesteps(timesteps=[300, 120])
    a, b = scheduler.alphas_cumprod[300], scheduler.alphas_cumprod[120]
    sample, noise, clean = torch.randn(3, 2, 3, 8, 8, generator=seeded())
    sample.requires_grad_()
    y = operator.encode(clean)
    output = gaussian_noise(sample, a, 1.0)
    step = scheduler.step(output, 300, sample, lambda x0: operator.project(x0, y), eta=eta, noise=noise)
    x0 = a.sqrt() * sample.detach()  # of which the derivative is sqrt(a)
    guidance = a.sqrt() * (operator.decode(y) - operator.decode(operator.encode(x0)))
    c1 = eta * ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
    c2 = (1 - b - c1**2).sqrt()
    expected = b.sqrt() * x0 + c1 * noise + c2 * output.detach() + (a * b).sqrt() * guidance
    torch.testing.assert_close(step.prev_sample, expected)
    torch.testing.assert_close(step.pred_original_sample, x0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_whatever_a_prior_predicts_the_steps_are_the_same(prediction_type):
    scheduler = PiGDMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(timesteps=[300, 120])
    a = scheduler.alphas_cumprod[300]
    sample = torch.randn(1, 3, 8, 8, generator=seeded()).requires_grad_()
    epsilon = gaussian_noise(sample, a, 0.5)
    x0 = (sample - (1 - a).sqrt() * epsilon) / a.sqrt()
    outputs = {"epsilon": epsilon, "sample": x0, "v_prediction": a.sqrt() * epsilon - (1 - a).sqrt() * x0}
    step = scheduler.step(outputs[prediction_type], 300, sample, lambda x0: x0 / 2, eta=0.0, return_dict=False)
    other = PiGDMScheduler.from_config(scheduler.config, prediction_type="epsilon")
    other.set_timesteps(timesteps=[300, 120])
    again = other.step(gaussian_noise(sample, a, 0.5), 300, sample, lambda x0: x0 / 2, eta=0.0, return_dict=False)
    torch.testing.assert_close(step, again, atol=1e-5, rtol=1e-5)


def test_without_guidance_it_is_ddim(data):
    ours, theirs = PiGDMScheduler(), DDIMScheduler(clip_sample=False, beta_start=1e-4, beta_end=2e-2)
    theirs.set_timesteps(20)
    ours.set_timesteps(timesteps=theirs.timesteps)
    sample, output, noise = torch.randn(3, 1, 3, 8, 8, generator=seeded())
    for eta in (0.0, 0.7):
        step = ours.step(output, 500, sample, eta=eta, noise=noise).prev_sample
        expected = theirs.step(output, 500, sample, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-4)


def test_samples_of_a_gaussian_prior_have_the_spread_of_the_posterior(guided, monkeypatch):
    """Measured are means of 2 x 2 pixels: they agree with `y`; the rest has the prior's spread of 0.3."""
    operator, spread = Downsampling(2), 0.3

    def gaussian(sample, timestep, class_labels, return_dict):
        return (gaussian_noise(sample, guided.scheduler.alphas_cumprod[timestep], spread),)

    monkeypatch.setattr(guided.unet, "forward", gaussian)
    x = spread * torch.randn(1, 3, 64, 64, generator=seeded()).clamp(-3, 3)
    options = {"num_inference_steps": 1000, "init_timestep": 1000, "output_type": "pt"}
    sample = paper(guided, x, operator=operator, generator=seeded(1), **options).images * 2 - 1
    missed = operator.encode(sample) - operator.encode(x)
    assert missed.abs().mean() < 0.01
    rest = sample - operator.decode(operator.encode(sample))
    assert rest.std().item() == pytest.approx(spread * 0.75**0.5, rel=0.03)  # three of four directions are free


@pytest.mark.parametrize(("size", "batch_size", "calls"), [((32, 32), 1, 1), ((60, 50), 1, 12), ((60, 50), 6, 1)])
def test_the_gradient_is_taken_window_by_window(size, batch_size, calls):
    unet, x = make_unet(), torch.randn(1, 3, *size, generator=seeded()).requires_grad_()
    count = []
    unet.register_forward_pre_hook(lambda *_: count.append(1))
    direction = torch.randn(1, 3, *size, generator=seeded(1))
    output = predict(unet, x, 50, window_size=32, overlap=8, batch_size=batch_size)
    (gradient,) = torch.autograd.grad(output, x, direction)
    assert len(count) == calls, "several calls are computed again, a single one is kept"
    step = 1e-2 * torch.randn(1, 3, *size, generator=seeded(2))
    with torch.no_grad():
        ahead, behind = (predict(unet, x + s * step, 50, window_size=32, overlap=8) for s in (1, -1))
    expected = ((ahead - behind) / 2 * direction).sum()
    torch.testing.assert_close((gradient * step).sum(), expected, atol=1e-4, rtol=2e-2)


@pytest.mark.parametrize("equivariant", [False, True])
def test_windows_views_and_checkpoints_change_no_picture(guided, data, equivariant):
    settings = {"num_samples": 2, "equivariant": equivariant, **QUICK}
    expected = paper(guided, data, generator=seeded(), **settings).images
    guided.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(paper(guided, data, generator=seeded(), **settings).images, expected, atol=1e-4, rtol=0)
    many = paper(guided, data, generator=seeded(), window_size=32, window_overlap=8, **settings).images
    assert many.shape == expected.shape
    assert many.isfinite().all()


def test_activations_of_a_checkpointed_prior_are_not_kept(guided, data):
    calls = []
    guided.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    paper(guided, data, **QUICK)
    assert len(calls) == 3
    guided.unet.enable_gradient_checkpointing()
    paper(guided, data, **QUICK)
    assert len(calls) == 9


def test_a_bfloat16_prior_leaves_the_sampler_in_float32(data):
    pipe = DDRMJPEGPipeline(unet=make_unet().to(torch.bfloat16), scheduler=PiGDMScheduler())
    states = []

    def note(pipeline, i, t, tensors):
        states.append((tensors["sample"].dtype, tensors["sample"].requires_grad))

    rough = paper(pipe, data, generator=seeded(), callback_on_step_end=note, **QUICK).images
    assert set(states) == {(torch.float32, False)}
    fine = paper(
        DDRMJPEGPipeline(unet=make_unet(), scheduler=PiGDMScheduler()), data, generator=seeded(), **QUICK
    ).images
    assert 0 < (rough - fine).abs().mean() < 0.02


def test_guidance_draws_the_picture_towards_the_file(guided, data):
    def consistency(scheduler, **options):
        guided.scheduler = scheduler
        settings = {"num_inference_steps": 20, "output_type": "pt", **options}
        return paper(guided, data, generator=seeded(), **settings).consistency[0]

    assert consistency(PiGDMScheduler()) > consistency(DDRMScheduler(), eta_b=0.0) + 0.1


def test_it_is_made_of_the_schedule_of_a_prior_and_goes_back(pipe):
    pipe.scheduler = DDRMScheduler(beta_end=0.015, eta_b=0.7, init_timestep=77)
    pipe.scheduler = PiGDMScheduler.from_config(pipe.scheduler.config)
    assert type(pipe.scheduler) is PiGDMScheduler
    assert (pipe.scheduler.config.beta_end, pipe.scheduler.config.init_timestep) == (0.015, 77)
    assert "eta_b" not in pipe.scheduler.config
    assert DDRMScheduler.from_config(pipe.scheduler.config).config.eta_b == 0.4
    assert PiGDMScheduler.from_config(DDIMScheduler(beta_end=0.01).config).config.beta_end == 0.01


def test_a_saved_pipeline_comes_back_with_it(guided, data, tmp_path):
    guided.scheduler = PiGDMScheduler(eta=0.7)
    guided.save_pretrained(tmp_path)
    expected = paper(guided, data, generator=seeded(), **QUICK).images
    for pipe in (DDRMJPEGPipeline.from_pretrained(tmp_path), DDRMJPEGPipeline.from_prior(tmp_path, dtype="float32")):
        assert type(pipe.scheduler) is PiGDMScheduler
        assert pipe.scheduler.config.eta == 0.7
        torch.testing.assert_close(paper(pipe, data, generator=seeded(), **QUICK).images, expected, atol=1e-5, rtol=0)
    passed = DDRMJPEGPipeline.from_pretrained(tmp_path, scheduler=PiGDMScheduler(eta=0.2))
    assert passed.scheduler.config.eta == 0.2


@pytest.mark.parametrize("arguments", [{"correction": "posterior"}, {"eta_b": 0.5}])
def test_what_its_step_does_not_take_is_refused(guided, data, arguments):
    with pytest.raises(ValueError, match=r"PiGDMScheduler does not take (correction posterior|eta_b 0\.5)"):
        paper(guided, data, **arguments)


def test_what_was_made_in_inference_mode_lets_gradients_through(guided, data):
    expected = paper(guided, data, generator=seeded(), **QUICK).images
    with torch.inference_mode():
        scheduler = PiGDMScheduler.from_config(guided.scheduler.config)
        made = DDRMJPEGPipeline(unet=copy.deepcopy(guided.unet), scheduler=scheduler)
    assert np.array_equal(paper(made, data, generator=seeded(), **QUICK).images, expected)


def test_without_a_gradient_it_says_so(guided, data):
    with torch.inference_mode(), pytest.raises(ValueError, match="needs the gradient through the prior"):
        paper(guided, data, **QUICK)
    scheduler = PiGDMScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="needs the gradient through the prior"):
        scheduler.step(torch.zeros(1, 3, 8, 8), 200, torch.zeros(1, 3, 8, 8), project=lambda x0: x0)
