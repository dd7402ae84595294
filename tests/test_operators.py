import numpy as np
import pytest
import torch
from conftest import jpeg_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_ddrm_jpeg import (
    Coefficients,
    Crop,
    Downsampling,
    JPEGFile,
    JPEGOperator,
    Operator,
    QuantizationOperator,
    observe,
)
from pipeline_ddrm_jpeg.jpeg.tables import SUBSAMPLING_FACTORS

REFERENCE_QUALITY_FACTORS = [5, 10, 30, 50, 90]

jpeg_operators = st.builds(
    JPEGOperator,
    quality_factor=st.integers(1, 100),
    chroma_subsampling=st.sampled_from(list(SUBSAMPLING_FACTORS)),
    convention=st.sampled_from(["libjpeg", "released"]),
)
quantizers = st.builds(
    QuantizationOperator, bits=st.integers(1, 7), reconstruction=st.sampled_from(["left", "center"])
)  # fmt: skip


def plane(blocks: torch.Tensor) -> torch.Tensor:
    """`[B, h, w, 8, 8]` -> `[B, 8h, 8w]`, the layout of the reference numbers."""
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)


def random_picture(operator: Operator, seed: int, batch: int = 2, scale: float = 0.6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    height, width = (3 * max(unit, 4) for unit in operator.alignment)
    return scale * torch.randn(batch, 3, height, width, generator=generator)


def random_measurement(operator: JPEGOperator, seed: int) -> Coefficients:
    """Integers as large as 8-bit samples can give: dequantized at most 1024 and half a step."""
    generator = torch.Generator().manual_seed(seed)
    zero = operator.encode(torch.zeros_like(random_picture(operator, 0)))
    limits = [(1024 / table + 0.5).floor() for table in operator.quantization_tables]
    return Coefficients(
        tuple(
            ((2 * torch.rand(part.shape, generator=generator) - 1) * limit).round()
            for part, limit in zip(zero.levels, limits, strict=True)
        )
    )


def equal(ours: Coefficients, theirs: Coefficients) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.levels, theirs.levels, strict=True))


@pytest.mark.parametrize("quality_factor", REFERENCE_QUALITY_FACTORS)
def test_paper_operator_gives_the_integers_of_the_released_program(reference, quality_factor):
    operator = JPEGOperator(quality_factor, convention="released")
    luma, *chroma = operator.encode(torch.from_numpy(reference["x"])).levels
    np.testing.assert_array_equal(plane(luma), reference[f"luma_{quality_factor}"][:, 0])
    np.testing.assert_array_equal(torch.stack([plane(c) for c in chroma], 1), reference[f"chroma_{quality_factor}"])


@pytest.mark.parametrize("quality_factor", [10, 90])
def test_paper_operator_decodes_as_the_released_program(reference, quality_factor):
    operator = JPEGOperator(quality_factor, convention="released")
    decoded = operator.decode(operator.encode(torch.from_numpy(reference["x"])))
    np.testing.assert_allclose(decoded[:1], reference[f"decoded_{quality_factor}"], atol=2e-6)


@settings(max_examples=60)
@given(operator=jpeg_operators, seed=st.integers(0, 2**32))
def test_encoding_a_decoded_random_measurement_gives_it_back_exactly(operator, seed):
    y = random_measurement(operator, seed)
    assert equal(operator.encode(operator.decode(y)), y)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [3, 10, 50, 95, 100])
def test_encoding_a_decoded_real_file_gives_its_coefficients_back_exactly(photo, subsampling, quality):
    seen = observe(jpeg_bytes(photo.crop((0, 0, 123, 90)), quality=quality, subsampling=subsampling))
    assert seen.size == (90, 123)
    assert equal(seen.operator.encode(seen.operator.decode(seen.y)), seen.y)


@settings(max_examples=40)
@given(operator=st.one_of(jpeg_operators, quantizers), seed=st.integers(0, 2**32))
def test_corrections_reach_the_measurement_and_leave_their_inputs_alone(operator, seed):
    x, clean = random_picture(operator, seed, scale=0.3), random_picture(operator, seed + 1, scale=0.3)
    y = operator.encode(clean)
    before = x.clone()
    for corrected in (operator.project(x, y), operator.nearest(x, y), operator.nearest(x, y, margin=0.5)):
        # A residual of half a bin may round either way: at quality factor 100 a bin is one grey level, and of 9,216
        # values two did (4:4:0, seed 4779).
        assert operator.consistency(corrected, y) > 0.999
    assert operator.consistency(operator.nearest(x, y), y) == 1.0
    assert torch.equal(x, before)


@settings(max_examples=40)
@given(operator=jpeg_operators, seed=st.integers(0, 2**32))
def test_the_quick_projection_is_the_formula_of_the_paper(operator, seed):
    x = random_picture(operator, seed)
    y = operator.encode(random_picture(operator, seed + 1))
    torch.testing.assert_close(operator.project(x, y), Operator.project(operator, x, y), atol=2e-5, rtol=0)


@settings(max_examples=40)
@given(operator=st.one_of(jpeg_operators, quantizers), seed=st.integers(0, 2**32))
def test_nearest_leaves_a_consistent_picture_where_it_is_and_moves_less_than_the_paper_does(operator, seed):
    x = random_picture(operator, seed, scale=0.3)
    y = operator.encode(random_picture(operator, seed + 1, scale=0.3))
    nearest, projected = operator.nearest(x, y), operator.project(x, y)
    torch.testing.assert_close(operator.nearest(nearest, y), nearest, atol=1e-5, rtol=0)
    if isinstance(operator, JPEGOperator):
        move, longer_move = (
            [c - d for c, d in zip(operator.coefficients(x), operator.coefficients(other), strict=True)]
            for other in (nearest, projected)
        )
        for short, long in zip(move, longer_move, strict=True):
            assert (short.abs() <= long.abs() + 0.3).all()  # the margin inside a bin
    else:
        assert ((nearest - x).abs() <= (projected - x).abs() + 1e-2).all()


def test_a_batch_of_measurements_is_treated_one_by_one(photo):
    operator = JPEGOperator(20)
    x = random_picture(operator, 0, batch=3)
    y = operator.encode(x)
    single = operator.encode(x[1:2])
    assert equal(operator.select(y, 1), single)
    assert operator.batch_size(y) == 3
    torch.testing.assert_close(operator.decode(y)[1:2], operator.decode(single))
    assert operator.project(x, single).shape == x.shape  # one measurement serves several samples


def test_consistency_is_the_share_of_coefficients_in_their_bins():
    operator = JPEGOperator(10, "4:4:4")
    y = operator.encode(torch.zeros(1, 3, 8, 8))
    moved = Coefficients(tuple(part.clone() for part in y.levels))
    moved.levels[0][0, 0, 0, 3, 2] += 1
    assert operator.consistency(operator.decode(moved), y) == 1 - 1 / 192


def test_greyscale_files_measure_chroma_to_be_zero(photo):
    seen = observe(jpeg_bytes(photo.convert("L").crop((0, 0, 40, 40)), quality=20))
    operator, y = seen.operator, seen.y
    assert len(y.levels) == operator.channels == 1
    assert equal(operator.encode(operator.decode(y)), y)
    x = random_picture(operator, 0)[..., :40, :40].repeat(1, 1, 2, 2)[..., :40, :40]
    for picture in (operator.decode(y), operator.project(x, y), operator.nearest(x, y)):
        torch.testing.assert_close(picture[:, 0], picture[:, 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(picture[:, 0], picture[:, 2], atol=1e-5, rtol=0)
        assert operator.consistency(picture, y) > 0.999


def test_rgb_coded_files_keep_their_channels_apart(photo):
    data = jpeg_bytes(photo.crop((0, 0, 32, 32)), quality=80, keep_rgb=True)
    file = JPEGFile.open(data)
    assert file.color_space == "RGB"
    seen = observe(file)
    operator, y = seen.operator, seen.y
    assert equal(operator.encode(operator.decode(y)), y)
    red, green, blue = operator.decode(y)[0]
    original = torch.from_numpy(np.array(photo.crop((0, 0, 32, 32)))).permute(2, 0, 1) / 127.5 - 1
    for ours, theirs in zip((red, green, blue), original, strict=True):
        assert (ours - theirs).abs().mean() < 0.1


def test_libjpeg_convention_and_not_the_papers_is_what_libjpeg_encodes(photo):
    picture = photo.crop((0, 0, 192, 160))
    file = JPEGFile.open(jpeg_bytes(picture, quality=90, subsampling="4:2:0"))
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    agreement = {
        convention: [
            (ours[0].numpy() == theirs).mean()
            for ours, theirs in zip(
                JPEGOperator(90, "4:2:0", convention).encode(x).levels, file.coefficients, strict=True
            )
        ]
        for convention in ("libjpeg", "released")
    }
    assert min(agreement["libjpeg"]) > 0.93  # the encoder works in integers
    for averaged, top_left in zip(agreement["libjpeg"][1:], agreement["released"][1:], strict=True):
        assert averaged > top_left + 0.01  # the paper takes one pixel of four for chroma


def test_a_size_that_is_not_whole_mcus_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        JPEGOperator(10).encode(torch.zeros(1, 3, 16, 24))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quality_factor": 0}, "between 1 and 100"),
        ({"quality_factor": 10, "chroma_subsampling": "4:3:2"}, "must be one of"),
        ({"quality_factor": 10, "convention": "gimp"}, "libjpeg"),
    ],
)
def test_arguments_of_the_jpeg_operator_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        JPEGOperator(**arguments)


@given(operator=quantizers)
def test_quantization_gives_every_level_back_exactly(operator):
    levels = torch.arange(2.0**operator.bits).reshape(1, 1, 1, -1)
    assert torch.equal(operator.encode(operator.decode(levels)), levels)


@given(operator=quantizers)
def test_quantization_of_8_bit_values_is_integer_division(operator):
    values = torch.arange(256)
    levels = operator.encode((values / 127.5 - 1).reshape(1, 1, 1, -1)).flatten()
    assert torch.equal(levels, (values // 2 ** (8 - operator.bits)).float())


def test_nine_bits_per_colour_are_eight_levels_at_left_edges():
    operator = QuantizationOperator(bits=3)
    assert operator.decode(torch.tensor([0.0, 1.0, 7.0])) == pytest.approx([-1, 32 / 127.5 - 1, 224 / 127.5 - 1])
    centred = QuantizationOperator(bits=3, reconstruction="center")
    assert centred.decode(torch.tensor([1.0])) == pytest.approx([47.5 / 127.5 - 1])


@pytest.mark.parametrize("arguments", [{"bits": 0}, {"bits": 8}, {"reconstruction": "right"}])
def test_arguments_of_the_quantization_operator_are_checked(arguments):
    with pytest.raises(ValueError, match="must be"):
        QuantizationOperator(**arguments)


def test_a_new_degradation_needs_only_encode_and_decode():
    class Grey(Operator):
        """Keeps the mean of the channels."""

        def encode(self, x):
            return x.mean(dim=1, keepdim=True)

        def decode(self, y):
            return y.expand(-1, 3, -1, -1)

    operator, x = Grey(), torch.rand(1, 3, 4, 4)
    y = torch.full((1, 1, 4, 4), 0.25)
    torch.testing.assert_close(operator.encode(operator.project(x, y)), y)
    torch.testing.assert_close(operator.nearest(x, y), operator.project(x, y))
    with pytest.raises(NotImplementedError, match="Operator does not implement encode"):
        Operator().encode(x)


@pytest.mark.parametrize("make", [lambda: JPEGOperator(10.5), lambda: QuantizationOperator(2.5)])
def test_fractions_where_whole_numbers_are_meant_are_refused(make):
    with pytest.raises(ValueError, match="must be a whole number"):
        make()


def test_autocast_around_it_changes_no_coefficient(photo):
    x = torch.from_numpy(np.array(photo.crop((0, 0, 64, 48)))).permute(2, 0, 1)[None] / 127.5 - 1
    operator = JPEGOperator(90)
    y = operator.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(operator.encode(x), y)
        assert operator.consistency(operator.nearest(torch.zeros_like(x), y), y) == 1.0


COMPOSED = {
    "crop, then JPEG": lambda: JPEGOperator(20) @ Crop(top=3, left=5, bottom=1),
    "smaller, then JPEG": lambda: JPEGOperator(20) @ Downsampling(2),
    "JPEG, then the same grid again": lambda: JPEGOperator(90) @ JPEGOperator(20),
    "JPEG, crop, then JPEG": lambda: JPEGOperator(95, "4:4:4") @ Crop(top=8, left=16) @ JPEGOperator(20, "4:4:4"),
    "crop, smaller, then fewer bits": lambda: QuantizationOperator(3) @ (Downsampling(3) @ Crop(left=1)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_degradations_keep_what_they_measured(photo, name):
    operator = COMPOSED[name]()
    height, width = operator.aligned(90, 122)
    assert (height, width) >= (90, 122)
    assert operator.aligned(height, width) == (height, width)
    x = torch.from_numpy(np.array(photo.resize((width, height)))).permute(2, 0, 1)[None] / 127.5 - 1
    y = operator.encode(x)
    start = operator.decode(y)
    assert start.shape == x.shape
    again = operator.encode(start)
    assert equal(again, y) if isinstance(y, Coefficients) else torch.equal(again, y)
    for corrected in (operator.project(x.roll(9, -1), y), operator.nearest(x.roll(9, -1), y)):
        assert operator.consistency(corrected, y) > 0.999
    torch.testing.assert_close(operator.project(x, y), x, atol=2e-3, rtol=0)  # the margin of `nearest`


def test_a_crop_is_corrected_inside_and_left_alone_outside():
    operator, x = JPEGOperator(10) @ Crop(top=8, left=8), torch.rand(1, 3, 40, 40) - 0.5
    corrected = operator.nearest(x, operator.encode(torch.zeros_like(x)))
    assert torch.equal(corrected[..., :8, :], x[..., :8, :])
    assert not torch.allclose(corrected[..., 8:, 8:], x[..., 8:, 8:])
    with pytest.raises(ValueError, match="none may be negative"):
        Crop(top=-1)
    with pytest.raises(ValueError, match="factor is 0"):
        Downsampling(0)
