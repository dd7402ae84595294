"""What diffusers' SchedulerCommonTest asks of every scheduler, one test a behaviour, in words of our own.

What of it does not apply, and why:

- clipping, thresholding and variance types: the correction keeps a state in bounds, a step has no variance to learn;
- Karras, exponential and beta sigmas, and the order of multistep schedulers: a step needs nothing but its own state;
- `clone` of a flow's shift and what depends on resolution: the schedule is the prior's alone;
- a whole loop from pure noise with numbers of diffusers' own: the reference numbers here are the released sampler's
  (test_scheduling_ddrm.py).
"""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from pipeline_ddrm_jpeg import DDRMScheduler

CONFIGS = [
    {},
    {"num_train_timesteps": 100},
    {"num_train_timesteps": 4000},
    {"beta_start": 0.001, "beta_end": 0.01},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"eta": 0.5, "eta_b": 1.0},
    {"init_timestep": 60},
]


@pytest.fixture
def sample():
    """A batch whose numbers are all different, as diffusers' tests have it."""
    return torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).float() / 768 - 0.5


def network(sample, t):
    """A stand-in that depends on the state and the timestep."""
    return sample * (int(t) / (int(t) + 1))


def loop(scheduler, sample, steps=5):
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        sample = scheduler.step(network(sample, t), t, sample, generator=generator).prev_sample
    return sample


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_steps_and_keeps_shape_and_numbers(config, sample):
    result = loop(DDRMScheduler(**config), sample)
    assert result.shape == sample.shape
    assert result.dtype == sample.dtype
    assert result.isfinite().all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_saved_scheduler_steps_as_before(config, sample, tmp_path):
    scheduler = DDRMScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "DDRMScheduler"
    again = DDRMScheduler.from_pretrained(tmp_path)
    for name, value in scheduler.config.items():
        assert name.startswith("_") or again.config[name] == value
    assert torch.equal(loop(again, sample), loop(scheduler, sample))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_its_config_makes_the_same_again(config, sample):
    scheduler = DDRMScheduler(**config)
    assert torch.equal(loop(DDRMScheduler.from_config(scheduler.config), sample), loop(scheduler, sample))


def test_a_keyword_overrides_the_config(tmp_path):
    DDRMScheduler(eta=0.3).save_pretrained(tmp_path)
    assert DDRMScheduler.from_pretrained(tmp_path, eta=0.6).config.eta == 0.6


def test_compatible_classes_go_there_and_back():
    scheduler = DDRMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    # One of them is a placeholder where torchsde is not installed.
    classes = [cls for cls in scheduler.compatibles if cls.__module__.startswith("diffusers.schedulers")]
    assert {DDPMScheduler, DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler} <= set(classes)
    for cls in classes:
        other = cls.from_config(scheduler.config)
        back = DDRMScheduler.from_config(other.config)
        assert torch.equal(back.alphas_cumprod, scheduler.alphas_cumprod), cls
        assert back.config.prediction_type == "v_prediction"


def test_settings_of_its_own_survive_the_way_through_another_class():
    other = DDIMScheduler.from_config(DDRMScheduler(eta=0.2, eta_b=0.9, init_timestep=77).config)
    back = DDRMScheduler.from_config(other.config)
    assert (back.config.eta, back.config.eta_b, back.config.init_timestep) == (0.2, 0.9, 77)


@pytest.mark.parametrize("steps", [1, 2, 27, 300])
def test_any_number_of_steps_up_to_the_start_works(steps, sample):
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == steps
    assert (scheduler.timesteps.diff() < 0).all()
    assert loop(scheduler, sample, steps).isfinite().all()


def test_a_step_at_any_timestep_keeps_the_shape(sample):
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(10)
    for t in (scheduler.timesteps[0], scheduler.timesteps[5], int(scheduler.timesteps[-1])):
        result = scheduler.step(network(sample, t), t, sample)
        assert result.prev_sample.shape == result.pred_original_sample.shape == sample.shape


def test_tuple_and_dict_are_the_same(sample):
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(1))
    named = scheduler.step(network(sample, t), t, sample, noise=noise)
    plain = scheduler.step(network(sample, t), t, sample, noise=noise, return_dict=False)
    assert torch.equal(named.prev_sample, plain[0])
    assert torch.equal(named["pred_original_sample"], plain[1])


def test_it_has_what_every_scheduler_has(sample):
    scheduler = DDRMScheduler()
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.order == 1
    assert torch.equal(scheduler.scale_model_input(sample, 3), sample)
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_is_added_in_the_dtype_and_for_each_sample_by_its_timestep(sample, dtype):
    scheduler = DDRMScheduler()
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    timesteps = torch.tensor([0, 10, 500, 999])
    noised = scheduler.add_noise(sample.to(dtype), noise, timesteps)
    assert noised.dtype == dtype
    for i, t in enumerate(timesteps):
        one = scheduler.add_noise(sample.to(dtype)[i : i + 1], noise[i : i + 1], t)
        torch.testing.assert_close(one[0], noised[i])
    rounding = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # the schedules are float32
    expected = DDPMScheduler().add_noise(sample.to(dtype), noise, timesteps)
    torch.testing.assert_close(noised, expected, rtol=rounding, atol=rounding)


def test_betas_can_be_given_one_by_one(sample):
    betas = [0.0001, 0.001, 0.01, 0.02, 0.05]
    scheduler = DDRMScheduler(trained_betas=betas, init_timestep=5)
    torch.testing.assert_close(scheduler.betas, torch.tensor(betas))
    assert loop(scheduler, sample, 5).isfinite().all()


def test_timesteps_can_be_given_one_by_one():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(timesteps=[100, 87, 50, 1, 0])
    assert scheduler.timesteps.tolist() == [100, 87, 50, 1, 0]
    for wrong in ([100, 50, 51], [1000, 5], [5, 5], []):
        with pytest.raises(ValueError, match="timesteps must decrease"):
            scheduler.set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="not both"):
        scheduler.set_timesteps(5, timesteps=[3, 2])


def test_a_step_before_the_timesteps_are_set_is_refused(sample):
    with pytest.raises(ValueError, match="set_timesteps"):
        DDRMScheduler().step(sample, 5, sample)


def test_an_unknown_prediction_type_or_attribute_is_an_error():
    with pytest.raises(ValueError, match="prediction_type"):
        DDRMScheduler(prediction_type="score")
    with pytest.raises(AttributeError):
        _ = DDRMScheduler().no_such_attribute


def test_a_zero_terminal_schedule_ends_in_noise():
    assert DDRMScheduler(rescale_betas_zero_snr=True).alphas_cumprod[-1].item() == pytest.approx(0.0, abs=1e-6)
