"""Damaged files, and what is left of them."""

import random
import re
from contextlib import nullcontext

import jpeglib
import numpy as np
import pytest
import torch
from conftest import jpeg_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from jpeg_corpus import repair_bombs, write_jpeg
from PIL import Image

from pipeline_ddrm_jpeg import JPEGDamageError, JPEGFile, JPEGFileError, observe
from pipeline_ddrm_jpeg.jpeg import entropy as jpeg_entropy
from pipeline_ddrm_jpeg.jpeg import file as jpeg_file
from pipeline_ddrm_jpeg.jpeg.entropy import UNMEASURED


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


def test_damage_has_an_error_of_its_own_and_hopeless_files_another(photo):
    data = jpeg_bytes(photo.resize((40, 24)))
    with pytest.raises(JPEGDamageError, match=r"^<bytes>: truncated: the file ends at byte \d+") as error:
        JPEGFile.open(data[:-40])
    assert "repair" not in str(error.value), "how to repair it is known to whoever asks"
    for hopeless in (b"", b"GIF89a", data[:100]):
        with pytest.raises(JPEGFileError) as error:
            JPEGFile.open(hopeless, repair=True)
        assert not isinstance(error.value, JPEGDamageError)
    with pytest.raises(JPEGFileError, match="nothing of the image is left"):
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
        assert operator.consistency(truth, y) == 1, "the whole image agrees with each of its beginnings"
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
    settings = {"num_inference_steps": 2, "init_timestep": 40}
    result = pipe(file, output_type="pt", generator=torch.Generator().manual_seed(0), settings=settings)
    assert result.consistency == [1.0]
    assert result.images.shape == (1, 3, 64, 64)
    assert observe(file).operator.consistency(2 * result.images - 1, observe(file).y) > 0.99


@pytest.mark.parametrize("kind", repair_bombs())
def test_no_file_makes_repair_decode_a_block_without_a_bit_for_it(kind, monkeypatch):
    data, visits, block = repair_bombs()[kind], 0, jpeg_entropy._Decoder.block

    def counted(*arguments):
        nonlocal visits
        visits += 1
        block(*arguments)

    monkeypatch.setattr(jpeg_entropy._Decoder, "block", counted)
    refused = {"empty scans": "more than 1000 scans", "restart markers alone": "nothing of the image is left"}
    with pytest.raises(JPEGFileError, match=refused[kind]) if kind in refused else nullcontext():
        assert len(JPEGFile.open(data, repair=True).damage) <= 1 + jpeg_entropy._MOST_PLACES
    assert visits <= 8 * len(data)
    assert (kind == "empty scans") == (visits == 0)


@pytest.mark.parametrize("kind", [kind for kind in repair_bombs() if kind != "empty scans"])
def test_a_repair_that_takes_too_long_ends_with_a_sentence(kind, monkeypatch):
    monkeypatch.setattr(jpeg_file, "_REPAIR_SECONDS", 0)
    monkeypatch.setattr(jpeg_file, "_REPAIR_SECONDS_PER_MEGABYTE", 0)
    with pytest.raises(JPEGFileError, match="what is left takes more than 0 s of processor time"):
        JPEGFile.open(repair_bombs()[kind], repair=True)


def test_scans_are_counted_while_they_are_read(photo):
    data = jpeg_bytes(photo.resize((16, 16)), progressive=True)
    with pytest.raises(JPEGFileError, match="it has more than 1000 scans, which is out of all proportion"):
        JPEGFile.open(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 1000 + b"cut short", repair=True)


SURPLUS = [
    *(b"\0" * 600, b"\xff\xd3", b"\x12\x34\x56", b"\xff\xff", b"\xff\0" * 9, b"\xff\1", b"\xff\xd9", b"\xff\xd0\0"),
    *(b"\xff\x12\0\2", b"\xff\xd8", b"\xff\xc4\0\5\0\0\0", b"\xff\xc0\0\2", b"\xff\xfe\xff\xff", b"\xff\xda\0\3\1"),
]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
@settings(max_examples=25)
@given(surplus=st.lists(st.sampled_from(SURPLUS) | st.binary(min_size=1), min_size=1, max_size=4))
def test_what_stands_between_the_last_block_and_the_end_does_no_harm(photo, options, surplus):
    clean = jpeg_bytes(photo.resize((40, 40)), quality=60, **options)
    whole = JPEGFile.open(clean)
    assert whole.remarks == ()
    data = clean[:-2] + b"".join(surplus) + b"\xff\xd9"
    for file in (JPEGFile.open(data), JPEGFile.open(data[:-1], repair=True)):
        for plane, truth in zip(file.coefficients, whole.coefficients, strict=True):
            np.testing.assert_array_equal(plane, truth)
        assert not file.invented.any()
    assert JPEGFile.open(data).damage == ()
    if surplus[0] == b"\0" * 600:
        assert JPEGFile.open(data).remarks == ("more data than its blocks need",)


@pytest.mark.parametrize("marker", [rb"\xff[\xd0-\xd7]", rb"\xff\xc4"], ids=["restart", "scan"])
def test_bytes_too_many_before_any_other_marker_are_damage_but_cost_no_block(photo, marker):
    options = {"restart_marker_blocks": 3} if b"d0" in marker else {"progressive": True}
    clean = jpeg_bytes(photo.resize((40, 40)), quality=60, **options)
    at = [match.start() for match in re.finditer(marker, clean)][-1]
    data = clean[:at] + b"\x55" * 40 + clean[at:]
    with pytest.raises(JPEGFileError, match=r"extraneous bytes before marker"):
        JPEGFile.open(data)
    file = JPEGFile.open(data, repair=True)
    assert not file.invented.any()
    np.testing.assert_array_equal(file.coefficients[0], JPEGFile.open(clean).coefficients[0])


@pytest.mark.parametrize("options", [{"restart_marker_blocks": 1}, {"progressive": True}], ids=str)
def test_coefficients_that_no_picture_has_are_damage(photo, options):
    data = jpeg_bytes(photo.resize((64, 48)), quality=95, **options)
    at = data.index(b"\xff\xdb") + 5  # the step of the DC coefficients, 2
    spoilt = data[:at] + b"\x08" + data[at + 1 :]
    with pytest.raises(JPEGFileError, match=r"component 1 has values that no image has in \d+ blocks"):
        JPEGFile.open(spoilt)
    file = JPEGFile.open(spoilt, repair=True)
    assert 0.01 < file.invented.mean() < 0.9
    assert any("values that no image has" in words for words in file.damage[1:])


def contrasts() -> np.ndarray:
    """Noise, stripes and squares of nothing but 0 and 255, 192 x 192."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:64, :64]
    noise = [rng.integers(0, 2, (64, 64, 3)), rng.integers(0, 2, (64, 64, 1)).repeat(3, 2)]
    noise += [np.kron(rng.integers(0, 2, (64 // n, 64 // n, 3)), np.ones((n, n, 1))) for n in (2, 4)]
    lines = [(x + slope * y) // width % 2 for slope, width in ((0, 1), (0, 3), (1, 1), (1, 4))]
    rings = np.cos((x**2 + y**2) / 90) > 0
    tiles = [*noise, *(grey[..., None].repeat(3, 2) for grey in (*lines, rings))]
    return (255 * np.block([[[tile] for tile in tiles[n : n + 3]] for n in (0, 3, 6)])).astype(np.uint8)


def assert_possible(path) -> None:
    jpeg = jpeglib.read_dct(str(path))
    planes = [plane for plane in (jpeg.Y, jpeg.Cb, jpeg.Cr) if plane is not None]
    for plane, number in zip(planes, jpeg.quant_tbl_no, strict=False):
        assert not jpeg_entropy.impossible(plane.reshape(-1, 64), jpeg.qt[number]).any()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_no_picture_is_taken_for_an_impossible_one(photo, subsampling, tmp_path):
    path = tmp_path / "a.jpg"
    for picture in (photo.resize((176, 128)), Image.fromarray(contrasts())):
        for quality in range(1, 101):
            path.write_bytes(jpeg_bytes(picture, quality=quality, subsampling=subsampling))
            assert_possible(path)
        for step in (300, 2000, 65535):
            for tables in ([[step] * 64] * 2, [[1] * 63 + [step]] * 2, [[step] + [1] * 63] * 2):
                path.write_bytes(jpeg_bytes(picture, qtables=tables, subsampling=subsampling))
                assert_possible(path)
                assert JPEGFile.open(path).damage == ()
        for quality in (1, 5, 20, 60, 90, 100):
            with jpeglib.version("mozjpeg403"):
                jpeg = jpeglib.from_spatial(np.asarray(picture))
                jpeg.samp_factor = subsampling
                jpeg.write_spatial(str(path), qt=quality)
            assert_possible(path)
