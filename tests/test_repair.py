"""Damaged files, and what is left of them."""

import random
import re

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes
from jpeg_corpus import write_jpeg

from pipeline_ddrm_jpeg import JPEGFile, JPEGFileError, observe
from pipeline_ddrm_jpeg.entropy_decoding import UNMEASURED


def scan_start(data: bytes) -> int:
    return data.index(b"\xff\xda") + 14


def measured(file: JPEGFile, component: int = 0) -> np.ndarray:
    return file.missing_bits[component] < UNMEASURED


def assert_truth(file: JPEGFile, whole: JPEGFile) -> None:
    """What the file says it knows is so, to the bits it says it knows."""
    for values, missing, truth in zip(file.coefficients, file.missing_bits, whole.coefficients, strict=True):
        values, missing, truth = (p.reshape(-1, 64).astype(int) for p in (values, missing, truth))
        bits = np.where(missing == UNMEASURED, 0, missing)
        known = np.sign(truth) * (np.abs(truth) >> bits << bits)
        known[:, 0] = truth[:, 0] >> bits[:, 0] << bits[:, 0]
        np.testing.assert_array_equal(values, np.where(missing == UNMEASURED, 0, known))


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"progressive": True}], ids=str)
def test_a_file_cut_short_keeps_exactly_what_comes_before_the_cut(photo, options):
    data = jpeg_bytes(photo.resize((88, 72)), quality=60, **options)
    whole, shares = JPEGFile.open(data), []
    for end in (b"", b"\xff", b"\xff\xd9"):
        for cut in np.linspace(scan_start(data) + 60, len(data) - 3, 3).astype(int):
            file = JPEGFile.open(data[:cut] + end, repair=True)
            assert file.damage
            assert (max(missing.max() for missing in file.missing_bits)) > 0
            assert_truth(file, whole)
            shares.append(file.invented.mean())
    assert shares[0] > shares[1] >= shares[2], "the more there is, the less is made up"
    if not options.get("progressive"):
        known = measured(JPEGFile.open(data[: len(data) // 2], repair=True), 1)[:, :, 0, 0].ravel()
        assert known[: known.sum()].all(), "chroma blocks are known up to the cut, and none after it"


def test_a_progressive_file_without_its_last_scans_knows_the_high_bits(photo):
    data = jpeg_bytes(photo.resize((64, 64)), quality=80, progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", data)]
    file = JPEGFile.open(data[: scans[1]], repair=True)  # DC alone
    assert (file.missing_bits[0][..., 0, 0] == 1).all()
    assert (file.missing_bits[0].reshape(-1, 64)[:, 1:] == UNMEASURED).all()
    np.testing.assert_allclose(file.invented, 63 / 64)
    nearly = JPEGFile.open(data[: scans[-1]], repair=True)
    assert nearly.invented.max() == 0
    assert max(missing.max() for missing in nearly.missing_bits) == 1
    assert_truth(nearly, JPEGFile.open(data))


def test_with_restart_markers_only_the_damaged_interval_is_lost():
    data, truth = write_jpeg([(2, 1), (1, 1), (1, 1)], (160, 64), interval=5)
    marks = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    for hole, lost in (((marks[3] + 2, marks[4]), [4]), ((marks[2] + 9, marks[4] + 30), [3, 4, 5])):
        broken = bytearray(data)
        broken[slice(*hole)] = b"\xff" * (hole[1] - hole[0])
        file = JPEGFile.open(bytes(broken), repair=True)
        unknown = ~measured(file, 1)[:, :, 0, 0].ravel()
        assert sorted(set(np.flatnonzero(unknown) // 5)) == lost
        for plane, expected, missing in zip(file.coefficients, truth, file.missing_bits, strict=True):
            np.testing.assert_array_equal(plane, np.where(missing == UNMEASURED, 0, expected))


def test_hardly_any_block_that_an_overwritten_sector_spoilt_is_believed(photo):
    rng, spoilt, blocks = random.Random(0), 0, 0
    data = jpeg_bytes(photo, quality=60)
    whole = JPEGFile.open(data)
    for _ in range(6):
        at = rng.randrange(len(data) // 3, len(data) - 600)
        junk = rng.choice((bytes(512), rng.randbytes(512)))
        file = JPEGFile.open(data[:at] + junk + data[at + 512 :], repair=True)
        wrong = (file.coefficients[0] != whole.coefficients[0]).any(axis=(2, 3)) & measured(file)[:, :, 0, 0]
        spoilt, blocks = spoilt + wrong.sum(), blocks + wrong.size
    assert spoilt / blocks < 0.02


def test_a_whole_file_is_read_as_ever_with_repair(photo):
    data = jpeg_bytes(photo.resize((40, 24)))
    plain, ready = JPEGFile.open(data), JPEGFile.open(data, repair=True)
    assert ready.damage == ()
    assert ready.missing_bits is None
    assert not ready.invented.any()
    np.testing.assert_array_equal(plain.coefficients[0], ready.coefficients[0])


def test_damage_is_refused_with_a_way_out_and_other_faults_without_one(photo):
    data = jpeg_bytes(photo.resize((40, 24)))
    with pytest.raises(JPEGFileError, match=r"truncated: .*--repair, or repair=True, restores what is left"):
        JPEGFile.open(data[:-40])
    for hopeless in (b"", b"GIF89a", data[:100], jpeg_bytes(photo.convert("CMYK"))[:-99]):
        with pytest.raises(JPEGFileError) as error:
            JPEGFile.open(hopeless, repair=True)
        assert "--repair" not in str(error.value)
    with pytest.raises(JPEGFileError, match="nothing of the picture is left"):
        JPEGFile.open(data[: scan_start(data)], repair=True)


@pytest.fixture
def cut(photo):
    """(a file that lacks its lower part, the whole one)."""
    data = jpeg_bytes(photo.resize((64, 64)), quality=40)
    return JPEGFile.open(data[: scan_start(data) + (len(data) - scan_start(data)) // 2], repair=True), JPEGFile.open(
        data
    )


def test_the_operator_holds_to_what_is_there_and_leaves_the_rest_free(cut):
    file, whole = cut
    seen, ordinary = observe(file), observe(whole)
    operator, y, truth = seen.operator, seen.y, ordinary.y
    start = operator.decode(y)
    for levels, ours, missing in zip(operator.encode(start).levels, y.levels, file.missing_bits, strict=True):
        known = torch.from_numpy(missing < UNMEASURED)[None]
        assert (levels == ours)[known].all()
    x = 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    before = operator.encode(x).levels
    for corrected in (operator.project(x, y), operator.nearest(x, y), operator.nearest(x, y, 0.5)):
        assert operator.consistency(corrected, y) == 1
        for i, levels in enumerate(operator.encode(corrected).levels):
            free = torch.from_numpy(file.missing_bits[i] == UNMEASURED)[None]
            assert 0.2 < free.float().mean() < 0.8
            assert (levels == before[i])[free].all(), "what is not measured does not move"
            assert (levels == truth.levels[i])[~free].all()
    assert operator.consistency(operator.decode(truth), y) == 1
    assert operator.consistency(x, y) < 0.9


def test_missing_low_bits_widen_a_bin(photo):
    data = jpeg_bytes(photo.resize((64, 64)), quality=80, progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", data)]
    whole = observe(data)
    truth = whole.operator.decode(whole.y)
    for scan in scans[1:]:
        seen = observe(JPEGFile.open(data[:scan], repair=True))
        operator, y = seen.operator, seen.y
        assert operator.consistency(truth, y) == 1, "the whole picture agrees with each of its beginnings"
        torch.testing.assert_close(operator.project(truth, y), truth, atol=1e-4, rtol=0)
        assert operator.consistency(operator.nearest(torch.zeros_like(truth), y), y) == 1


def test_what_is_missing_starts_from_what_is_around_it(cut):
    file, whole = cut
    start, truth = (seen.operator.decode(seen.y) for seen in map(observe, (file, whole)))
    hole = torch.from_numpy(file.invented == 1)
    grey = torch.zeros_like(truth)
    assert start.isfinite().all()
    assert (start - truth)[..., hole].abs().mean() < 0.9 * (grey - truth)[..., hole].abs().mean()


def test_the_pipeline_restores_what_is_left(pipe, cut):
    file, _ = cut
    settings = {"num_inference_steps": 2, "init_timestep": 40, "consistent": True}
    result = pipe(file, output_type="pt", generator=torch.Generator().manual_seed(0), **settings)
    assert result.consistency == [1.0]
    assert result.images.shape == (1, 3, 64, 64)
    assert observe(file).operator.consistency(2 * result.images - 1, observe(file).y) > 0.99
