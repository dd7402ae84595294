import math

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import truncnorm

from pipeline_ddrm_jpeg import Coefficients, Downsampling, JPEGFile, JPEGOperator, QuantizationOperator, observe
from pipeline_ddrm_jpeg.degradations.jpeg import _ACTIVITY_POWER, _LEAST_ACTIVITY, _USUAL_ACTIVITY, _mix, block_dct
from pipeline_ddrm_jpeg.degradations.posterior import subsampled_variance, truncated_normal, zero_bin_variance
from pipeline_ddrm_jpeg.sampling.denoiser_error import DenoiserError, WienerError


def moments(mean, std, low, high):
    values = (torch.as_tensor(value, dtype=torch.float32) for value in (mean, std, low, high))
    return [value.double().numpy() for value in truncated_normal(*torch.broadcast_tensors(*values))]


def integrated(mean, std, low, high):
    """Mean and variance of one truncated Gaussian by the trapezoid rule in float64, wherever its mass is."""
    mode = min(max(mean, low), high)
    gap = abs(mode - mean) / std
    reach = std * 80 / (math.sqrt(gap**2 + 80) + gap)
    x = np.linspace(max(low - mode, -reach), min(high - mode, reach), 100_001)
    density = np.exp(-x * (x + 2 * (mode - mean)) / (2 * std**2))
    total, first = (np.trapezoid(density * power, x) for power in (1, x))
    offset = first / total
    return mode + offset, np.trapezoid(density * (x - offset) ** 2, x) / total


def tiled(picture, height, width):
    """`[1, 3, height, width]` in [-1, 1] from the top left of a PIL image."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None, :, :height, :width] / 127.5 - 1


def coefficients(operator, picture):
    """Of each component, of an image without offset (noise, or a difference of images), in 8-bit grey levels."""
    zero = operator.coefficients(torch.zeros_like(picture))
    return [c - z for c, z in zip(operator.coefficients(picture), zero, strict=True)]


def test_moments_agree_with_scipy_where_scipy_is_exact():
    mean, std, half = np.meshgrid(np.linspace(-8, 8, 33), [0.3, 1.0, 3.0, 10.0], [0.5, 2.0, 5.0])
    expected = truncnorm((-half - mean) / std, (half - mean) / std, loc=mean, scale=std)
    inside = np.abs(mean) - half < 4 * std  # further out its variance cancels
    ours, variance = moments(mean, std, -half, half)
    scale = np.minimum(half, std)
    np.testing.assert_array_less((np.abs(ours - expected.mean()) / scale)[inside], 1e-4)
    np.testing.assert_array_less(np.abs(variance / expected.var() - 1)[inside], 2e-3)


@settings(max_examples=200)
@given(
    position=st.floats(-1000, 1000),
    std=st.floats(-3, 3).map(lambda power: 10.0**power),
    half=st.floats(-2, 2).map(lambda power: 10.0**power),
)
def test_moments_agree_with_integration_however_far_out(position, std, half):
    """`position` in half bins from the centre, so up to a million standard deviations out."""
    mean = float(np.float32(position * half))
    std, half = float(np.float32(std)), float(np.float32(half))
    ours, variance = moments(mean, std, -half, half)
    expected, expected_variance = integrated(mean, std, -half, half)
    assert -half <= ours <= half
    assert abs(ours - expected) < 1e-4 * min(half, std) + np.spacing(np.float32(half))  # of the result itself
    assert math.sqrt(variance) == pytest.approx(math.sqrt(expected_variance), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("mean", [-7.0, 0.3, 0.999, 1.0, 1e4])
def test_without_error_the_mean_is_the_nearest_point_and_with_infinite_error_the_centre(mean):
    ours, variance = moments(mean, 0.0, -1.0, 1.0)
    assert ours == pytest.approx(np.clip(mean, -1, 1), abs=2e-6)
    assert variance < 1e-11
    ours, variance = moments(mean, math.inf, -1.0, 1.0)
    assert ours == pytest.approx(0, abs=1e-6)
    assert variance == pytest.approx(1 / 3, rel=1e-4)


def test_degenerate_and_infinite_intervals():
    inf = math.inf
    ours, variance = moments([5.0, 5.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0], [1.0, -inf, 0.0, -inf], [1.0, inf, inf, inf])
    np.testing.assert_allclose(ours, [1, 5, 2 * math.sqrt(2 / math.pi), 0], atol=1e-4)
    np.testing.assert_allclose(variance, [0, 4, 4 * (1 - 2 / math.pi), 0], rtol=1e-3, atol=1e-11)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("std", [0.0, 0.01, 0.3, math.inf])
@pytest.mark.parametrize("quality", [1, 10, 75, 97, 100])
def test_the_posterior_mean_agrees_with_the_file(quality, std, subsampling):
    operator = JPEGOperator(quality, subsampling)
    generator = torch.Generator().manual_seed(quality)
    y = operator.encode(0.6 * torch.randn(2, 3, 64, 96, generator=generator))
    x = 0.6 * torch.randn(2, 3, 64, 96, generator=generator)
    for start in (x, 4 * x):
        picture, _ = operator.posterior(start, y, std)
        assert operator.consistency(picture, y) == 1


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("RGB", {}), ("RGB", {"keep_rgb": True})])
def test_files_of_any_colour_space(photo, mode, options):
    seen = observe(jpeg_bytes(photo.crop((0, 0, 64, 96)).convert(mode), quality=20, **options))
    operator, y = seen.operator, seen.y
    picture, state = operator.posterior(torch.zeros_like(operator.decode(y)), y, WienerError().at(0.3))
    assert operator.consistency(picture, y) == 1
    assert [part.shape for part in state] == [part.shape for part in y.levels]
    noise = torch.randn(picture.shape)
    remaining = operator.remaining_noise(noise.clone(), 0.3, state)
    assert remaining.square().mean() < noise.square().mean()


def test_what_a_damaged_file_lacks_stays_as_the_denoiser_has_it(photo):
    data = jpeg_bytes(photo, quality=30)
    seen = observe(JPEGFile.open(data[: len(data) * 2 // 3], repair=True))
    operator, y = seen.operator, seen.y
    x = torch.zeros_like(operator.decode(y))
    picture, state = operator.posterior(x, y, 0.1)
    assert operator.consistency(picture, y) == 1
    torch.testing.assert_close(picture[..., -16:, :], x[..., -16:, :], atol=1e-6, rtol=0)
    error = 0.1**2 / 0.299**2  # more than noise has in luma: its forward row is shorter than 1
    assert 0.1**2 < state[0][0, -1, -1, 0, 0] < error
    assert all(part.isfinite().all() for part in operator.decoded_variance(y))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_posterior_mean_of_gaussian_pictures_is_unbiased_with_the_announced_variance(subsampling):
    """Coefficients drawn around `x` with the stated error: given their bins, the mean must be the least-squares one."""
    operator = JPEGOperator(20, subsampling)
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(1, 3, 256, 256, generator=generator)
    centre = operator.coefficients(x)
    tables, sizes = operator.quantization_tables, [part.shape for part in centre]
    std = 0.05
    errors = [127.5 * std / math.sqrt(down * across) for down, across in operator.subsampling]
    truth = [
        part + error * torch.randn(size, generator=generator)
        for part, error, size in zip(centre, errors, sizes, strict=True)
    ]
    y = Coefficients(tuple((part / table).round() for part, table in zip(truth, tables, strict=True)))
    picture, state = operator.posterior(x, y, std)
    for i, (ours, theirs) in enumerate(zip(operator.coefficients(picture), truth, strict=True)):
        error = (ours - theirs).double()
        shares = torch.tensor(operator._forward[i]).square().sum().item() / math.prod(operator.subsampling[i])
        announced = state[i].double() * shares * 127.5**2
        assert error.mean().abs() < 5 * error.std() / math.sqrt(error.numel())
        assert error.square().mean().item() == pytest.approx(announced.mean().item(), rel=0.03)
        # the least squares estimate is orthogonal to its error
        moved = (ours - centre[i]).double()
        assert (moved * error).mean().abs() < 5 * (moved * error).std() / math.sqrt(error.numel())


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_network_sees_noise_of_the_announced_variance_in_every_coefficient(photo, subsampling):
    """The image's error and the noise that is added have together the variance of the level, or the error's alone."""
    operator = JPEGOperator(30, subsampling)
    generator = torch.Generator().manual_seed(1)
    clean = tiled(photo, 256, 336).repeat(4, 1, 1, 1)
    std, noise_to_signal = 0.04, 0.08
    errors = [127.5 * std / math.sqrt(math.prod(factors)) for factors in operator.subsampling]
    denoised = [
        part + error * torch.randn(part.shape, generator=generator)
        for part, error in zip(coefficients(operator, clean), errors, strict=True)
    ]
    denoised = _mix(operator._planes(denoised), operator._inverse) / 127.5
    picture, state = operator.posterior(denoised, operator.encode(clean), std)
    noise = operator.remaining_noise(torch.randn(clean.shape, generator=generator), noise_to_signal, state)
    seen = coefficients(operator, picture - clean + noise_to_signal * noise)
    added = coefficients(operator, noise)
    for i, variance in enumerate(state):
        unit = 127.5**2 * torch.tensor(operator._forward[i]).square().sum() / math.prod(operator.subsampling[i])
        blocks = variance[..., 0, 0].numel()
        fair = {"rtol": 7 * math.sqrt(2 / blocks), "atol": 0.01}
        announced = (1 - variance / noise_to_signal**2).clamp(min=0).mean(dim=(0, 1, 2))
        torch.testing.assert_close(added[i].square().mean(dim=(0, 1, 2)) / unit, announced, **fair)
        # The photograph was not drawn from the model, so its errors only nearly have the variance of the state.
        total = variance.clamp(min=noise_to_signal**2).mean()
        assert (seen[i].square().mean() / unit).item() == pytest.approx(total.item(), rel=0.15)


def test_noise_that_the_file_does_not_measure_is_kept():
    operator = JPEGOperator(10, "4:2:0")
    noise = torch.randn(1, 3, 32, 32)
    y = operator.encode(torch.zeros(1, 3, 32, 32))
    everything = tuple(torch.full_like(part, 1e9) for part in y.levels)
    rest = operator.remaining_noise(noise.clone(), 0.1, everything)
    planes, before = _mix(rest, operator._forward), _mix(noise, operator._forward)
    means = [torch.nn.functional.avg_pool2d(p[:, 1:], 2) for p in (planes, before)]
    assert planes[:, 0].abs().max() < 1e-5
    assert means[0].abs().max() < 1e-5
    detail = before[:, 1:] - means[1].repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(planes[:, 1:], detail, atol=1e-5, rtol=0)


def test_no_error_leaves_the_noise_as_it_is():
    operator = JPEGOperator(10)
    noise = torch.randn(1, 3, 32, 32)
    state = tuple(torch.zeros_like(part) for part in operator.encode(noise).levels)
    torch.testing.assert_close(operator.remaining_noise(noise.clone(), 0.1, state), noise)


def test_subsampling_leaves_white_errors_white_and_smooth_ones_large():
    white = torch.full((8, 8), 3.0)
    torch.testing.assert_close(subsampled_variance(white, 2, 2), white / 4)
    torch.testing.assert_close(subsampled_variance(white, 1, 4), white / 4)
    torch.testing.assert_close(
        subsampled_variance(torch.arange(64.0).reshape(8, 8), 1, 1), torch.arange(64.0).reshape(8, 8)
    )


def test_subsampled_variance_is_that_of_averaged_noise_with_a_smooth_spectrum():
    generator = torch.Generator().manual_seed(0)
    noise = torch.nn.functional.avg_pool2d(torch.randn(4, 1025, 1025, generator=generator), 2, stride=1)
    variances = [
        block_dct(plane).square().mean(dim=(0, 1, 2)) for plane in (noise, torch.nn.functional.avg_pool2d(noise, 2))
    ]
    folded = subsampled_variance(variances[0], 2, 2)
    torch.testing.assert_close(folded.sqrt(), variances[1].sqrt(), rtol=0.2, atol=0)


@pytest.mark.parametrize("bits", [1, 3, 7])
@pytest.mark.parametrize("std", [0.0, 0.05, math.inf])
def test_the_posterior_mean_agrees_with_quantized_channels(bits, std):
    operator = QuantizationOperator(bits)
    y = operator.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    picture, variance = operator.posterior(torch.randn(2, 3, 16, 16), y, std)
    assert operator.consistency(picture, y) == 1
    if std == math.inf:
        width = (operator.step - 1) / 127.5
        torch.testing.assert_close(variance, torch.full_like(variance, width**2 / 12), rtol=1e-2, atol=0)
    noise = operator.remaining_noise(torch.ones(2, 3, 16, 16), 0.2, variance)
    torch.testing.assert_close(noise.square(), (1 - variance / 0.04).clamp(min=0))


def striped(operator, amplitude):
    """A grey image whose blocks have one AC coefficient, of this root mean square in grey levels."""
    columns = torch.cos((2 * torch.arange(16) + 1) * torch.pi * 2 / 16) * 2**0.5 * amplitude / 127.5
    return columns.expand(1, 3, 16, 16)


def test_a_block_of_usual_activity_is_expected_to_be_off_by_what_its_bins_leave_open():
    operator = JPEGOperator(10, "4:4:4")
    x = striped(operator, _USUAL_ACTIVITY - _LEAST_ACTIVITY)
    expected = operator.expected_error(x, operator.encode(x), math.inf)
    luma, cb, cr = ((127.5**-2 * table.square() / 12).mean() for table in operator.quantization_tables)
    of_red, of_blue = luma + 1.402**2 * cr, luma + 1.772**2 * cb
    for channel, variance in ((0, of_red), (2, of_blue)):
        torch.testing.assert_close(expected[:, channel].square().mean(), variance, rtol=0.01, atol=0)
    busier = striped(operator, 2 * _USUAL_ACTIVITY - _LEAST_ACTIVITY)
    ratio = operator.expected_error(busier, operator.encode(busier), math.inf) / expected
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2 ** (_ACTIVITY_POWER / 2)), rtol=0.01, atol=0)


def test_of_averaged_chroma_the_denoisers_error_remains_where_nothing_is_measured():
    whole, averaged = (
        JPEGOperator.from_tables([torch.ones(8, 8)] * 3, [(factor, factor), (1, 1), (1, 1)]) for factor in (1, 2)
    )
    x = striped(whole, _USUAL_ACTIVITY - _LEAST_ACTIVITY)
    known, hidden = (
        one.expected_error(x, one.encode(x), 0.1).square().mean(dim=(0, 2, 3)) for one in (whole, averaged)
    )
    of_chroma = torch.tensor([1.402**2, 0.344136**2 + 0.714136**2, 1.772**2])
    torch.testing.assert_close(hidden - known, 0.75 * 0.1**2 * of_chroma, rtol=0.01, atol=0)


def test_an_operator_without_an_answer_expects_no_error():
    operator = QuantizationOperator(3)
    x = torch.zeros(1, 3, 16, 16)
    assert operator.expected_error(x, operator.encode(x), 0.1) is None


def test_an_error_table_is_interpolated_in_logarithms_and_held_at_its_ends():
    error = DenoiserError([0.1, 0.4], torch.stack([torch.full((2, 8, 8), 0.01), torch.full((2, 8, 8), 0.04)]))
    for level, expected in ((0.01, 0.01), (0.1, 0.01), (0.2, 0.02), (0.4, 0.04), (3.0, 0.04)):
        torch.testing.assert_close(error.at(level), torch.full((2, 8, 8), expected))


@pytest.mark.parametrize(
    ("levels", "std"),
    [([0.1], torch.ones(1, 2, 8, 8)), ([0.2, 0.1], torch.ones(2, 2, 8, 8)), ([0.1, 0.2], torch.ones(2, 3, 8, 8))],
)
def test_tables_of_another_form_are_refused(levels, std):
    with pytest.raises(ValueError, match=r"noise levels|errors must"):
        DenoiserError(levels, std)


def test_a_table_survives_its_config():
    error = DenoiserError(torch.tensor([0.1, 0.4, 1.0]), torch.rand(3, 2, 8, 8) + 0.01)
    again = DenoiserError.from_config(error.to_config())
    torch.testing.assert_close(again.std, error.std, rtol=6e-3, atol=0)
    torch.testing.assert_close(again.noise_to_signal, error.noise_to_signal)


def test_a_composed_degradation_has_a_posterior_mean_that_it_measures(photo):
    operator = JPEGOperator(20) @ Downsampling(2)
    y = operator.encode(tiled(photo, 128, 160))
    picture, _ = operator.posterior(torch.zeros(1, 3, 128, 160), y, 0.1)
    assert operator.consistency(picture, y) > 0.9999


def test_wieners_error_is_that_of_noise_at_first_and_of_pictures_at_last():
    low, high = WienerError().at(1e-4), WienerError().at(1e4)
    assert (low / 1e-4).square().mean(dim=(1, 2)).tolist() == pytest.approx([0.447 * 4 / 9, 0.41 * 4 / 9], rel=1e-3)
    assert (high[0, 1, 0] ** 2).item() == pytest.approx(1.1 * 4 / 9, rel=1e-3)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_texture_is_noise_of_the_posteriors_variance_where_a_picture_is_busy(photo, mode):
    seen = observe(jpeg_bytes(photo.convert(mode), quality=20))
    operator, y = seen.operator, seen.y
    mean, variance = operator.posterior(operator.decode(y), y, 0.05)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    textured = operator.textured(mean, y, 0.05, noise, 1.0)
    assert torch.equal(operator.textured(mean, y, 0.05, noise, 0.0), mean)
    expanded = operator.textured(mean, y, 0.05, torch.zeros_like(mean), 1.0)
    change, *chroma = coefficients(operator, textured - expanded)
    assert all(component.abs().max() < 1e-2 for component in chroma)  # grain has no colour
    left = variance[0] * operator.noise_units[0]
    energy = operator.coefficients(mean)[0].square().flatten(-2)[..., 1:].sum(dim=-1) / 64
    busy = energy > 25 * left.mean(dim=(-2, -1))
    assert busy.sum() > 50
    assert change[..., 0, 0].abs().max() < 1e-2  # the mean of a block is measured well
    for u, v in ((0, 5), (3, 2), (2, 6), (7, 7)):
        seen = (left[busy][:, u, v].sqrt() - 0.8).clamp(min=0)
        announced = (seen.square() * (u + v) / 5).mean().item()
        assert change[busy][:, u, v].square().mean().item() == pytest.approx(announced, rel=0.5)
    smooth = energy < left.mean(dim=(-2, -1))
    assert change[busy].square().mean() > 5 * change[smooth].square().mean()


def test_texture_moves_coefficients_away_from_zero_by_what_the_file_leaves_open(photo):
    seen = observe(jpeg_bytes(photo, quality=20))
    operator, y = seen.operator, seen.y
    mean, variance = operator.posterior(operator.decode(y), y, 0.01)
    expanded = operator.textured(mean, y, 0.01, torch.zeros_like(mean), 1.0)
    u_v = torch.arange(8)[:, None] + torch.arange(8)
    for i, (most, unseen) in enumerate(((4 / 3, 0.8), (2, 0), (2, 0))):
        before, after = (operator.coefficients(x)[i] for x in (mean, expanded))
        std, change = (variance[i] * operator.noise_units[i]).sqrt(), after - before
        torch.testing.assert_close(change[..., 0, 0], torch.zeros_like(change[..., 0, 0]), rtol=0, atol=0.01)
        distance, size = change * before.sign(), before.abs()
        reach = most * (u_v / 5).sqrt() * (std - unseen).clamp(min=0) * (size / std).clamp(max=1)
        assert (distance > -0.01).all()
        assert (distance < reach + 0.01).all()
        far = (size > 20 * std) & (reach > 0)
        energy = size.square().sum(dim=(-2, -1), keepdim=True) - size[..., :1, :1].square()
        busy = energy > 50 * std.square().sum(dim=(-2, -1), keepdim=True)
        assert (far & busy).sum() > 20
        assert (distance / reach)[far & busy].mean().item() == pytest.approx(1, rel=0.1)


def test_texture_of_a_block_depends_on_that_block_alone():
    operator, random = JPEGOperator(10), torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 4608, 32, generator=random) * 2 - 1  # more than one band
    noise = torch.randn(x.shape, generator=random)
    y = operator.encode(x)
    whole = operator.textured(x, y, 0.05, noise, 1.0)
    end = slice(4576, None)
    corner = Coefficients(tuple(part[:, -n:] for part, n in zip(y.levels, (4, 2, 2), strict=True)))
    alone = operator.textured(x[:, :, end], corner, 0.05, noise[:, :, end], 1.0)
    assert (alone - x[:, :, end]).abs().max() > 0.01
    torch.testing.assert_close(alone, whole[:, :, end], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2.0, 5.0, 20.0, 200.0])
def test_the_variance_around_zero_is_that_of_the_laplacian_which_the_levels_show(scale):
    generator, step = torch.Generator().manual_seed(0), 12.0
    uniform = torch.rand((1, 200, 200, 8, 8), generator=generator, dtype=torch.float64) - 0.5
    values = -scale * uniform.sign() * torch.log1p(-2 * uniform.abs())
    levels = (values / step).round()
    true = (values.square() * (levels == 0)).sum() / (levels == 0).sum()
    found = zero_bin_variance(levels.float(), torch.full((8, 8), step))
    assert found.mean() == pytest.approx(true.item(), rel=0.02)


def test_the_variance_around_zero_is_defined_whatever_the_levels_are():
    steps = torch.full((8, 8), 10.0)
    for levels in (torch.zeros(1, 3, 4, 8, 8), torch.full((1, 3, 4, 8, 8), 900.0)):
        variance = zero_bin_variance(levels, steps)
        assert variance.shape == (1, 1, 1, 8, 8)
        assert ((variance >= 0) & (variance <= 100 / 12 + 0.1)).all()


def test_chroma_at_full_resolution_has_less_noise_than_its_bins_are_wide(photo):
    for subsampling, less in (("4:4:4", True), ("4:2:0", False)):
        seen = observe(jpeg_bytes(photo, quality=20, subsampling=subsampling))
        for i, variance in enumerate(seen.operator.decoded_variance(seen.y)):
            uniform = seen.operator.quantization_tables[i].square() / (12 * seen.operator.noise_units[i])
            assert torch.allclose(variance[..., 0, 0], uniform[0, 0])
            assert bool((variance < 0.9 * uniform).any()) == (less and i > 0)
