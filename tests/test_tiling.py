from itertools import pairwise

import pytest
import torch
from conftest import make_unet
from diffusers import UNet2DModel
from hypothesis import given
from hypothesis import strategies as st

from pipeline_ddrm_jpeg.priors import EMBEDDED
from pipeline_ddrm_jpeg.sampling.tiling import (
    VIEWS,
    State,
    Tiling,
    count_windows,
    predict,
    predict_together,
    spread,
    windows_in_a_call,
)


@pytest.fixture(scope="module")
def unet():
    return make_unet()


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (2, 2)])
@torch.no_grad()
def test_a_picture_of_one_window_is_one_call_of_the_prior(unet, size):
    x = torch.randn(2, 3, *size)
    direct = torch.cat([unet(one[None], 50).sample for one in x])
    torch.testing.assert_close(predict(unet, x, 50, window_size=64, overlap=16), direct)


@pytest.mark.parametrize("size", [(1, 1), (33, 40), (7, 150), (150, 200)])
@torch.no_grad()
def test_any_size_comes_back_in_that_size(unet, size):
    assert predict(unet, torch.randn(1, 3, *size), 50, window_size=32, overlap=8).shape == (1, 3, *size)


@pytest.mark.parametrize("overlap", [0, 1, 8, 20])
@torch.no_grad()
def test_windows_that_agree_are_blended_to_what_they_say(overlap):
    constant = make_unet()
    constant.conv_out.weight.data.zero_()
    constant.conv_out.bias.data = torch.tensor([1.0, -2.0, 0.5])
    output = predict(constant, torch.randn(2, 3, 100, 75), 50, window_size=32, overlap=overlap)
    torch.testing.assert_close(output, torch.tensor([1.0, -2.0, 0.5])[None, :, None, None].expand(2, 3, 100, 75))


@pytest.mark.parametrize("size", [(1, 1), (32, 33), (100, 75), (500, 31)])
@torch.no_grad()
def test_windows_are_counted_as_they_are_made(unet, size):
    seen = []
    predict(unet, torch.randn(1, 3, *size), 50, window_size=32, overlap=8, batch_size=3, on_windows=seen.append)
    assert sum(seen) == count_windows(unet, *size, window_size=32, overlap=8)


@torch.no_grad()
def test_the_number_of_windows_in_a_call_changes_nothing(unet):
    x = torch.randn(2, 3, 90, 70)
    one, many = (predict(unet, x, 50, window_size=32, overlap=8, batch_size=size) for size in (1, 5))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_states_of_any_sizes_timesteps_and_views_share_calls_and_come_out_as_alone(unet):
    sizes = [(1, 24, 40), (3, 40, 24), (2, 32, 32), (1, 90, 70), (1, 5, 3)]
    views = [None, VIEWS[1:4], None, [5], [7]]
    options = {"window_size": 32, "overlap": 8, "rounded_to": 32}
    states = [
        State(torch.randn(batch, 3, *size), timestep, views=own)
        for (batch, *size), own, timestep in zip(sizes, views, (3, torch.tensor(700), 50, 0, 999), strict=True)
    ]
    alone = [predict(unet, one.sample, one.timestep, views=one.views, **options) for one in states]
    windows, calls = [], []
    hook = unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    predict_together(unet, states, batch_size=7, on_windows=windows.append, **options)
    hook.remove()
    assert windows == calls
    assert sum(windows) == sum(batch * count_windows(unet, *size, **options) for batch, *size in sizes)
    assert len(calls) == 4  # of 7, 7, 7 and 2
    for state, expected in zip(states, alone, strict=True):
        torch.testing.assert_close(state.take(), expected, atol=1e-6, rtol=0)
        assert state.sample is None, "what is taken is let go of"


@torch.no_grad()
def test_a_view_of_a_picture_is_what_the_prior_sees_of_it(unet):
    x = torch.randn(1, 3, 45, 70)
    for view in VIEWS:
        turned = x.flip([dim for bit, dim in ((1, -1), (2, -2)) if view & bit])
        seen = predict(unet, turned.mT if view & 4 else turned, 50, window_size=32, overlap=8)
        seen = (seen.mT if view & 4 else seen).flip([dim for bit, dim in ((1, -1), (2, -2)) if view & bit])
        torch.testing.assert_close(predict(unet, x, 50, window_size=32, overlap=8, views=[view]), seen)


@torch.no_grad()
def test_blended_windows_leave_no_seam(unet):
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    output = predict(unet, x, 50, window_size=64, overlap=32)[0]
    jump = (output[:, :, 1:] - output[:, :, :-1]).abs().mean(dim=(0, 1))
    borders = [31, 63]  # the windows begin at 0, 32, 64
    assert jump[borders].mean() < 1.1 * jump.median()


@torch.no_grad()
def test_a_prior_with_learned_variance_keeps_its_six_channels(unet):
    six = make_unet(out_channels=6)
    assert predict(six, torch.randn(1, 3, 50, 40), 50, window_size=32, overlap=8).shape == (1, 6, 50, 40)


@pytest.mark.parametrize(("window_size", "overlap"), [(33, 0), (0, 0), (32, 32), (32, -1)])
def test_windows_that_do_not_fit_the_prior_are_refused(unet, window_size, overlap):
    with pytest.raises(ValueError, match="window_size"):
        predict(unet, torch.zeros(1, 3, 64, 64), 0, window_size=window_size, overlap=overlap)


def test_windows_go_one_by_one_where_more_are_slower(unet):
    assert windows_in_a_call(unet, 256, torch.device("cpu")) == 1
    assert windows_in_a_call(unet, 256, torch.device("meta")) > 1


@given(st.integers(1, 20_000), st.integers(1, 40), st.sampled_from([8, 16, 32]), st.floats(0, 0.9))
def test_windows_of_one_extent_cover_an_axis_evenly(size, times, multiple, share):
    window_size, overlap = times * multiple, int(times * multiple * share)
    starts, extent = spread(size, window_size, overlap, multiple)
    assert extent % multiple == 0
    assert extent <= window_size
    steps = [after - before for before, after in pairwise(starts)]
    assert starts[0] == 0
    if steps:
        assert starts[-1] + extent == size
        assert max(steps) <= extent - overlap
        assert max(steps) - min(steps) <= 1
        assert len(steps) * (window_size - overlap) + overlap < size  # one fewer would not do
    else:
        assert size <= extent < size + multiple


def test_the_prior_is_shown_at_most_a_fifth_more_than_the_image():
    unet = UNet2DModel.from_pretrained(EMBEDDED, subfolder="unet")
    options = Tiling().options(unet, torch.device("cpu"))
    shown = []
    for size in range(256, 9000):
        starts, extent = spread(size, options["window_size"], options["overlap"], multiple=8)
        shown.append((len(starts) * extent / size) ** 2)
    assert max(shown) <= 1.2
    assert count_windows(unet, 512, 512, **options) == 4


def test_images_of_many_sizes_have_few_shapes_where_windows_share_calls():
    assert {spread(size, 448, 24, multiple=64)[1] for size in range(500, 4001)} == {320, 384, 448}
