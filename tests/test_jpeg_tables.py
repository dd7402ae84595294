import io

import numpy as np
import pytest
from PIL import Image

from pipeline_ddrm_jpeg.jpeg.tables import (
    SUBSAMPLING_FACTORS,
    ZIGZAG,
    chroma_subsampling_name,
    estimate_quality_factor,
    quality_tables,
)


def test_libjpeg_tables_are_those_that_libjpeg_writes_at_every_quality_factor():
    for quality_factor in range(1, 101):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=quality_factor)
        written = Image.open(stream).quantization
        for ours, theirs in zip(quality_tables(quality_factor), (written[0], written[1]), strict=True):
            np.testing.assert_array_equal(ours.ravel(), theirs, err_msg=f"quality factor {quality_factor}")


def test_paper_tables_differ_from_libjpeg_at_34_quality_factors_all_below_50():
    different = [
        q
        for q in range(1, 101)
        if any((a != b).any() for a, b in zip(quality_tables(q), quality_tables(q, "released"), strict=True))
    ]
    assert len(different) == 34
    assert max(different) < 50
    assert 30 in different
    assert not {5, 10, 20, 25, 40} & set(different)


def test_zigzag_starts_and_ends_as_in_figure_a6_of_the_standard():
    assert ZIGZAG[:11].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32]
    assert ZIGZAG[-3:].tolist() == [55, 62, 63]
    assert sorted(ZIGZAG) == list(range(64))


def test_quality_factor_is_found_again_for_every_pair_of_tables():
    for quality_factor in range(1, 101):
        assert estimate_quality_factor(quality_tables(quality_factor)) == (quality_factor, True)


def test_quality_factor_of_foreign_tables_is_an_estimate():
    luma, chroma = quality_tables(75)
    estimate, exact = estimate_quality_factor([luma + 1, chroma])
    assert not exact
    assert abs(estimate - 75) <= 8


@pytest.mark.parametrize("quality_factor", [0, 101, -5])
def test_quality_factor_out_of_range_is_refused(quality_factor):
    with pytest.raises(ValueError, match="between 1 and 100"):
        quality_tables(quality_factor)


def test_subsampling_names_are_found_from_factors_also_when_these_are_multiples():
    for name, (h, v) in SUBSAMPLING_FACTORS.items():
        assert chroma_subsampling_name([(h, v), (1, 1), (1, 1)]) == name
    assert chroma_subsampling_name([(2, 2), (1, 2), (1, 2)]) == "4:2:2"
    assert chroma_subsampling_name([(1, 1)]) is None
    assert chroma_subsampling_name([(1, 1), (2, 2), (1, 1)]) is None
