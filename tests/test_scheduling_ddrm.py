import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler
from hypothesis import given
from hypothesis import strategies as st

from pipeline_ddrm_jpeg import DDRMScheduler, JPEGOperator
from pipeline_ddrm_jpeg.degradations.jpeg import quality_tables
from pipeline_ddrm_jpeg.sampling.samples import Noise
from pipeline_ddrm_jpeg.sampling.scheduling_ddrm import TIMESTEP_SPACINGS, scheduled
from pipeline_ddrm_jpeg.sampling.settings import Settings


def test_alphas_are_those_of_the_paper_to_float32():
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64).float()
    scheduler = DDRMScheduler()
    assert torch.equal(scheduler.alphas_cumprod, (1 - betas).cumprod(0))
    assert scheduler.alphas_cumprod[285].item() == pytest.approx(0.431, abs=5e-4)


def test_defaults_are_the_papers_and_start_at_285():
    scheduler = DDRMScheduler()
    config = scheduler.config
    assert (config.eta, config.eta_b) == (1.0, 0.4)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == list(range(285, -1, -15))


@pytest.mark.parametrize("init_timestep", [1, 7, 60, 299, 300, 1000])
@pytest.mark.parametrize("steps", [1, 6, 7, 20, 50])
def test_exactly_as_many_steps_as_asked_for_down_to_zero(steps, init_timestep):
    scheduler = DDRMScheduler(init_timestep=init_timestep)
    if steps > init_timestep:
        with pytest.raises(ValueError, match="between 1 and init_timestep"):
            scheduler.set_timesteps(steps)
        return
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    assert len(timesteps) == steps == scheduler.num_inference_steps
    assert timesteps[-1] == 0
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert timesteps[0] < init_timestep


def test_log_spaced_timesteps_have_noise_of_which_each_is_the_same_fraction_of_the_one_before():
    scheduler = DDRMScheduler(timestep_spacing="log")
    for steps, last in ((2, 1.75 / 4), (4, 1.75 / 16), (12, 0.1)):
        scheduler.set_timesteps(steps, init_timestep=100)
        levels = [scheduler.noise_to_signal(t) for t in scheduler.timesteps]
        assert scheduler.timesteps[0] == 100
        shares = [level / levels[0] for level in levels]
        expected = [last ** (i / (steps - 1)) for i in range(steps)]
        assert shares == pytest.approx(expected, rel=0.1, abs=0.02)
    scheduler.set_timesteps(1, init_timestep=100)
    assert scheduler.timesteps.tolist() == [100]
    with pytest.raises(ValueError, match="timestep_spacing is 'even'"):
        scheduler.set_timesteps(4, timestep_spacing="even")


def test_noise_accounting_decides_after_the_correction_what_is_added():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(timesteps=[100, 40])
    output, sample, noise = torch.randn(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told = []

    def half(noise, noise_to_signal):
        told.append(noise_to_signal)
        return noise / 2

    def step(t, noise=noise, **options):
        return scheduler.step(output, t, sample, noise=noise, **options).prev_sample

    without = step(100, noise=torch.zeros_like(noise))
    torch.testing.assert_close(step(100, remaining_noise=half) - without, (step(100) - without) / 2)
    torch.testing.assert_close(step(40, remaining_noise=half), step(40))
    assert told == pytest.approx([scheduler.noise_to_signal(40), 0.0], rel=1e-5)


@given(start=st.integers(1, 1000), spacing=st.sampled_from(TIMESTEP_SPACINGS), data=st.data())
def test_timesteps_of_every_spacing_decrease_and_stay_in_the_schedule(start, spacing, data):
    steps = data.draw(st.integers(1, start))
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(steps, init_timestep=start, timestep_spacing=spacing)
    timesteps = scheduler.timesteps.tolist()
    assert len(timesteps) == steps
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert 0 <= timesteps[-1] <= timesteps[0] <= start


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [4, 20, 300])
def test_timesteps_are_those_of_diffusers_on_a_schedule_that_ends_where_sampling_starts(spacing, steps):
    theirs = DDIMScheduler(num_train_timesteps=300, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    ours = DDRMScheduler(timestep_spacing=spacing)
    ours.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


def test_the_nearest_timestep_has_the_ratio_of_noise_to_signal():
    scheduler = DDRMScheduler()
    ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    assert [scheduler.nearest_timestep(ratios[t].item()) for t in (0, 17, 300, 999)] == [0, 17, 300, 999]
    assert scheduler.nearest_timestep(0.0) == 0


@given(coarse=st.floats(1e-3, 2.0), ratio=st.floats(0.0, 1.0), steps=st.integers(1, 12))
def test_an_automatic_start_is_the_higher_the_coarser_the_measurement_and_never_above_the_papers(coarse, ratio, steps):
    scheduler, own = DDRMScheduler(timestep_spacing="log"), Settings(num_inference_steps=steps, timestep_spacing=None)
    highest, lowest = (scheduled(scheduler, own, u).timesteps for u in (coarse, coarse * ratio))
    assert 300 >= highest[0] >= lowest[0] >= steps - 1
    assert len(highest) == len(lowest) == steps


def test_automatic_starts_of_very_coarse_files_rise_faster_but_with_two_steps():
    scheduler, starts = DDRMScheduler(timestep_spacing="log"), {}
    for quality in (3, 5, 10, 40):
        uncertainty = JPEGOperator.from_tables(quality_tables(quality), [(2, 2), (1, 1), (1, 1)]).uncertainty()
        chosen = [scheduled(scheduler, Settings(num_inference_steps=steps), uncertainty) for steps in (2, 4, 6)]
        starts[quality] = [int(one.timesteps[0]) for one in chosen]
    assert starts == {3: [181, 300, 300], 5: [145, 237, 255], 10: [106, 128, 135], 40: [56, 69, 73]}


def test_an_automatic_start_does_not_ask_for_the_schedulers_own():
    assert len(scheduled(DDRMScheduler(init_timestep=3), Settings(), 0.1).timesteps) == 4
    with pytest.raises(ValueError, match="num_inference_steps is 4"):
        scheduled(DDRMScheduler(init_timestep=3), Settings(init_timestep=None))


def test_noise_that_is_given_is_the_noise_of_the_step():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(4)
    output, sample, noise = torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def step(**source):
        return scheduler.step(output, 150, sample, eta=0.9, **source).prev_sample

    drawn = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(step(noise=drawn), step(generator=torch.Generator().manual_seed(3)))
    assert torch.equal(step(noise=lambda: drawn), step(noise=drawn))
    torch.testing.assert_close(step(noise=noise) + step(noise=-noise), 2 * step(noise=torch.zeros_like(noise)))


def test_timesteps_of_ones_own_are_taken_and_checked():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(timesteps=[60, 30, 15, 8])
    assert scheduler.timesteps.tolist() == [60, 30, 15, 8]
    for wrong in ([], [1, 2], [5, 5], [1000, 0], [3, -1]):
        with pytest.raises(ValueError, match="decrease strictly"):
            scheduler.set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="not both"):
        scheduler.set_timesteps(5, timesteps=[3])


DENOISERS = {
    "gaussian": lambda x, alpha: (1 - alpha).sqrt() * x,
    "smooth": lambda x, alpha: (
        (x - alpha.sqrt() * F.avg_pool2d(F.pad(x / alpha.sqrt(), (1, 1, 1, 1), mode="replicate"), 3, 1))
        / (1 - alpha).sqrt()
    ),
}


@pytest.mark.parametrize(
    ("quality_factor", "eta", "eta_b", "steps", "init_timestep"), [(10, 1.0, 0.4, 20, 300), (30, 0.85, 1.0, 10, 200)]
)
@pytest.mark.parametrize("name", DENOISERS)
def test_samples_of_the_released_program_are_reproduced(
    reference, name, quality_factor, eta, eta_b, steps, init_timestep
):
    scheduler = DDRMScheduler(eta=eta, eta_b=eta_b, init_timestep=init_timestep)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(reference["x"])
    operator = JPEGOperator(quality_factor, convention="released")
    y = operator.encode(x)
    noise = Noise(torch.Generator().manual_seed(1234), x.shape, 1.0, torch.device("cpu"))
    sample = scheduler.add_noise(operator.decode(y), noise.start(), scheduler.timesteps[0])
    for i, t in enumerate(scheduler.timesteps):
        epsilon = DENOISERS[name](sample, scheduler.alphas_cumprod[t])
        output = scheduler.step(epsilon, t, sample, project=lambda x0: operator.project(x0, y), noise=noise.step)
        sample = output.prev_sample
        if i == 0:
            first = torch.from_numpy(reference[f"{name}_qf{quality_factor}_first"])
            torch.testing.assert_close(sample[:1], first, atol=1e-4, rtol=0)
    last = torch.from_numpy(reference[f"{name}_qf{quality_factor}_eta{eta}_etab{eta_b}_n{steps}_t{init_timestep}"])
    torch.testing.assert_close(sample[:1], last, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("eta", "eta_b"), [(1.0, 0.4), (0.85, 1.0), (0.5, 0.0)])
def test_with_a_gaussian_prior_mean_and_variance_follow_their_closed_form(eta, eta_b):
    """The prior N(0, 1) has epsilon = sqrt(1 - alpha) x; a measurement that says "y everywhere" makes x' = y."""
    scheduler = DDRMScheduler(eta=eta, eta_b=eta_b)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    y, shape = 0.7, (4, 3, 128, 128)
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    sample = scheduler.add_noise(torch.full(shape, y), torch.randn(shape, generator=generator), scheduler.timesteps[0])
    mean, variance = alpha.sqrt() * y, 1 - alpha
    alphas = [*scheduler.alphas_cumprod[scheduler.timesteps], torch.tensor(1.0)]
    for t, alpha, alpha_next in zip(scheduler.timesteps, alphas, alphas[1:], strict=False):
        keep = alpha_next.sqrt() * (1 - eta_b) * alpha.sqrt() + (1 - alpha_next).sqrt() * (1 - eta) * (1 - alpha).sqrt()
        mean = keep * mean + alpha_next.sqrt() * eta_b * y
        variance = keep**2 * variance + (1 - alpha_next) * eta**2
        epsilon = (1 - alpha).sqrt() * sample
        sample = scheduler.step(epsilon, t, sample, lambda x0: torch.full_like(x0, y), generator=generator).prev_sample
        error = (variance / sample.numel()).sqrt()
        assert abs(sample.mean() - mean) < 5 * error + 1e-6
        assert abs(sample.var() - variance) < 0.02 * variance + 1e-9


def test_all_prediction_types_describe_the_same_step():
    sample, x0 = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        scheduler = DDRMScheduler(prediction_type=prediction_type, eta=0.5)
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[1]
        alpha = scheduler.alphas_cumprod[t]
        epsilon = (sample - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        output = {
            "epsilon": epsilon,
            "sample": x0,
            "v_prediction": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * x0,
        }[prediction_type]
        results.append(scheduler.step(output, t, sample, generator=torch.Generator().manual_seed(1)))
        torch.testing.assert_close(results[-1].pred_original_sample, x0, atol=1e-5, rtol=0)
        torch.testing.assert_close(results[-1].prev_sample, results[0].prev_sample, atol=1e-5, rtol=0)


def test_learned_variance_is_cut_off():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(4)
    sample, output = torch.randn(1, 3, 8, 8), torch.randn(1, 6, 8, 8)
    t = scheduler.timesteps[0]
    six, three = (
        scheduler.step(o, t, sample, generator=torch.Generator().manual_seed(0)) for o in (output, output[:, :3])
    )
    assert torch.equal(six.prev_sample, three.prev_sample)
    assert six.prev_sample.shape == sample.shape


def test_the_last_step_returns_the_mix_of_correction_and_prediction_without_noise():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(3)
    sample, output = torch.randn(2, 1, 3, 8, 8)
    result = scheduler.step(output, 0, sample, project=torch.zeros_like)
    torch.testing.assert_close(result.prev_sample, 0.6 * result.pred_original_sample)


def test_a_list_of_generators_draws_each_picture_as_alone():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(3)
    t, sample, output = scheduler.timesteps[0], torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    both = scheduler.step(output, t, sample, generator=[torch.Generator().manual_seed(s) for s in (5, 6)])
    for i, seed in enumerate((5, 6)):
        generator = torch.Generator().manual_seed(seed)
        alone = scheduler.step(output[i : i + 1], t, sample[i : i + 1], generator=generator)
        torch.testing.assert_close(both.prev_sample[i : i + 1], alone.prev_sample)


def test_tuple_and_output_say_the_same():
    scheduler = DDRMScheduler()
    scheduler.set_timesteps(3)
    sample, output = torch.randn(2, 1, 3, 8, 8)
    named = scheduler.step(output, 0, sample)
    prev_sample, pred_original_sample = scheduler.step(output, 0, sample, return_dict=False)
    assert torch.equal(named.prev_sample, prev_sample)
    assert torch.equal(named.pred_original_sample, pred_original_sample)


def test_wrong_use_is_refused():
    scheduler = DDRMScheduler()
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(torch.zeros(1, 3, 8, 8), 0, torch.zeros(1, 3, 8, 8))
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="not one of the timesteps"):
        scheduler.step(torch.zeros(1, 3, 8, 8), 17, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="prediction_type"):
        DDRMScheduler(prediction_type="flow")


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_configs_of_other_schedulers_load(schedule):
    ddpm = DDPMScheduler(beta_schedule=schedule, prediction_type="v_prediction", variance_type="learned_range")
    scheduler = DDRMScheduler.from_config(ddpm.config)
    torch.testing.assert_close(scheduler.alphas_cumprod, ddpm.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"


def test_trained_betas_are_used_as_given():
    betas = [0.1, 0.2, 0.3]
    scheduler = DDRMScheduler.from_config(DDIMScheduler(num_train_timesteps=3, trained_betas=betas).config)
    torch.testing.assert_close(scheduler.alphas_cumprod, torch.tensor([0.9, 0.72, 0.504]))
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match=r"num_inference_steps is 2; .* between 1 and init_timestep \(1\)"):
        scheduler.set_timesteps(2)


def test_a_schedule_that_ends_in_pure_noise_is_that_of_diffusers():
    theirs = DDIMScheduler(rescale_betas_zero_snr=True)
    torch.testing.assert_close(DDRMScheduler.from_config(theirs.config).alphas_cumprod, theirs.alphas_cumprod)


def test_a_longer_schedule_starts_at_the_same_share_of_it():
    scheduler = DDRMScheduler.from_config(DDPMScheduler(num_train_timesteps=4000).config)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 1140


def test_compatible_schedulers_are_those_whose_configs_load():
    kinds = {type(kind) for kind in DDRMScheduler().compatibles} | set(DDRMScheduler().compatibles)
    assert {DDPMScheduler, DDIMScheduler} <= kinds
    with pytest.raises(ValueError, match="the prior's scheduler is a EDMEulerScheduler"):
        DDRMScheduler.from_config({"_class_name": "EDMEulerScheduler", **EDMEulerScheduler().config})


def test_save_and_load_keep_the_config(tmp_path):
    scheduler = DDRMScheduler(eta=0.85, eta_b=1.0, init_timestep=200, beta_end=0.03)
    scheduler.save_pretrained(tmp_path)
    loaded = DDRMScheduler.from_pretrained(tmp_path)
    for name in ("eta", "eta_b", "init_timestep", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        assert loaded.config[name] == scheduler.config[name]
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    assert len(loaded) == 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_add_noise_keeps_the_type(dtype):
    x = torch.zeros(2, 3, 4, 4, dtype=dtype)
    assert DDRMScheduler().add_noise(x, x, torch.tensor([1, 2])).dtype == dtype


def test_add_noise_takes_one_timestep_or_one_for_each_picture():
    scheduler = DDRMScheduler()
    x, noise = torch.randn(2, 2, 3, 4, 4)
    both = scheduler.add_noise(x, noise, torch.tensor([10, 200]))
    for i, t in enumerate((10, 200)):
        torch.testing.assert_close(both[i], scheduler.add_noise(x[i], noise[i], t))
        alpha = scheduler.alphas_cumprod[t]
        torch.testing.assert_close(both[i], alpha.sqrt() * x[i] + (1 - alpha).sqrt() * noise[i])
