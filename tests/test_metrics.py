import numpy as np
import pytest

from pipeline_ddrm_jpeg.metrics import psnr


def test_psnr_of_a_constant_difference_is_known():
    zero = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr(zero, zero + 16) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(zero / 255, (zero + 16) / 255, peak=1) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(zero, zero) == float("inf")


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(4, 5\)"):
        psnr(np.zeros((4, 4)), np.zeros((4, 5)))
