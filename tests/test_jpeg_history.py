"""What JPEG an image was: estimated from real encoders' and decoders' pixels, and restored as its file is."""

import io
import json
import shutil
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ddrm_jpeg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from pipeline_ddrm_jpeg import (
    DDRMJPEGPipeline,
    DecodedJPEG,
    JPEGFile,
    JPEGFileError,
    assume_history,
    observe,
)
from pipeline_ddrm_jpeg.decoded.coefficients import read_coefficients
from pipeline_ddrm_jpeg.decoded.opening import open_image
from pipeline_ddrm_jpeg.decoded.regions import _densest, estimate_earlier, estimate_history
from pipeline_ddrm_jpeg.files.restoration import restore_file
from pipeline_ddrm_jpeg.files.tasks import Task
from pipeline_ddrm_jpeg.jpeg.tables import quality_tables

ORIGINAL = Path(__file__).parent.parent / "examples" / "originals" / "cat.png"
FAST = {"preset": "paper", "settings": {"num_inference_steps": 1, "init_timestep": 50}}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(ORIGINAL).convert("RGB").crop((0, 0, 256, 256))


@pytest.fixture(scope="module")
def part(photo) -> Image.Image:
    """As much of it as shows what it was."""
    return photo.crop((32, 32, 208, 208))


@pytest.fixture(scope="module")
def pipe() -> DDRMJPEGPipeline:
    pipe = DDRMJPEGPipeline.from_embedded(dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoded(picture: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def decoded(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert(mode))


def check_tables(history, quality: int) -> None:
    for table, shown, true in zip(
        history.quantization_tables, history.determined, quality_tables(quality), strict=False
    ):
        assert np.array_equal(table[shown], true[shown])


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
@pytest.mark.parametrize("quality", [20, 50, 90])
def test_tables_grid_and_subsampling_are_read_from_decoded_pixels(part, quality, subsampling):
    history = estimate_history(decoded(encoded(part, quality=quality, subsampling=subsampling)))
    assert (history.chroma_subsampling, history.offset, history.quality_factor) == (subsampling, (0, 0), quality)
    assert history.explained > 0.95
    check_tables(history, quality)


def test_a_crop_is_placed_on_the_grid_it_came_from(photo):
    pixels = decoded(encoded(photo, quality=50))[13:213, 22:222]
    history = estimate_history(pixels)
    assert history.offset == (13, 22 % 16)
    check_tables(history, 50)


def test_grey_is_grey_in_one_channel_or_three(part):
    data = encoded(part.convert("L"), quality=30)
    for mode in ("L", "RGB"):
        history = estimate_history(decoded(data, mode))
        assert (history.color_space, history.quality_factor, len(history.quantization_tables)) == ("L", 30, 1)


def test_a_table_of_somebodys_own_is_read_step_by_step(part):
    rng = np.random.default_rng(0)
    tables = [rng.integers(3, 12, 64).tolist() for _ in range(2)]
    history = estimate_history(decoded(encoded(part, qtables=tables, subsampling=0)))
    luma, shown = history.quantization_tables[0], history.determined[0]
    true = JPEGFile.open(encoded(part, qtables=tables, subsampling=0)).components[0].quantization_table
    assert shown.sum() > 40
    assert np.array_equal(luma[shown], true[shown])


@pytest.mark.skipif(shutil.which("djpeg") is None, reason="libjpeg's own decoder is not installed")
@pytest.mark.parametrize("options", [(), ("-nosmooth",), ("-dct", "float")])
def test_the_decoder_may_be_djpeg_with_either_upsampling(photo, options):
    data = encoded(photo, quality=40)
    done = subprocess.run(["djpeg", "-ppm", *options], input=data, capture_output=True, check=True)
    history = estimate_history(np.array(Image.open(io.BytesIO(done.stdout))))
    assert (history.chroma_subsampling, history.offset) == ("4:2:0", (0, 0))
    assert history.fancy_upsampling == ("-nosmooth" not in options)
    check_tables(history, 40)


@pytest.mark.parametrize("quality", [10, 40])
def test_the_coefficients_of_a_decoded_file_are_those_of_the_file(part, quality):
    data = encoded(part, quality=quality)
    pixels = decoded(data)
    read = read_coefficients(pixels, estimate_history(pixels))
    for ours, theirs in zip(read.levels, JPEGFile.open(data).coefficients, strict=True):
        assert (ours == theirs).mean() > 0.999


def test_the_picture_of_a_decoded_file_is_that_of_the_file(pipe, photo):
    data = encoded(photo.crop((0, 0, 128, 128)), quality=40)
    same = {"generator": torch.Generator().manual_seed(0), "output_type": "pt", **FAST}
    ours = pipe(Image.open(io.BytesIO(data)).convert("RGB"), history="estimate", **same).images[0]
    same["generator"] = torch.Generator().manual_seed(0)
    assert torch.allclose(ours, pipe(data, **same).images[0], atol=1e-3)


def test_blocks_that_the_border_cuts_are_measured_as_if_mirrored(photo):
    crop = Image.fromarray(decoded(encoded(photo, quality=40))[3:203, 5:205])
    seen = observe(crop, history="estimate")
    assert seen.size == (200, 200)
    assert seen.origin == (3, 5)
    luma = seen.y.levels[0]
    assert not torch.equal(luma[0, 0], luma[0, 0].round())
    assert torch.equal(luma[0, 1:-1, 1:-1], luma[0, 1:-1, 1:-1].round())
    x = seen.operator.decode(seen.y)
    own = x[0, :, 3:203, 5:205].clamp(-1, 1).add(1).mul(127.5).permute(1, 2, 0).numpy()
    assert np.abs(own - np.asarray(crop))[8:-16, 16:-16].mean() < 1.5  # chroma is repeated, not interpolated
    assert seen.operator.consistency(x, seen.y) > 0.999


def test_a_crop_gains_at_its_border_too(pipe, photo):
    inside = np.s_[5:205, 3:203]
    true, crop = np.asarray(photo)[inside], decoded(encoded(photo, quality=20))[inside]
    generator = torch.Generator().manual_seed(0)
    result = pipe(Image.fromarray(crop), history="estimate", generator=generator, preset="fast")
    border = np.ones((200, 200), bool)
    border[11:-13, 13:-11] = False  # within MCUs that are there as a whole
    was, became = (np.square(one.astype(float) - true)[border].mean() for one in (crop, np.asarray(result.images[0])))
    assert became < 0.9 * was
    assert result.consistency[0] > 0.999


def test_what_never_was_a_jpeg_shows_none(photo):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    resized = Image.fromarray(decoded(encoded(photo, quality=30))).resize((136, 136), Image.Resampling.BICUBIC)
    flat = np.full((64, 64), 200, np.uint8)
    slope = np.array(Image.linear_gradient("L").rotate(3).resize((136, 110)).convert("RGB"))
    for pixels in (noise, ramp, np.asarray(resized), flat, flat[:5], slope):
        assert estimate_history(pixels) is None
    with pytest.raises(JPEGFileError, match="--assume-quality"):
        DecodedJPEG.open(photo.crop((0, 0, 128, 128)))


def test_enlarged_pixels_show_none(photo):
    """Blocks in one colour, or with one edge, are on a grid of 8 pixels, and nothing was quantized in them."""
    small = photo.resize((15, 12), Image.Resampling.LANCZOS)
    grey, few_colours = np.asarray(small.convert("L")), np.asarray(small.quantize(16).convert("RGB"))
    for pixels, times in ((grey, 8), (few_colours, 8), (np.asarray(small)[:6, :7], 16)):
        assert estimate_history(pixels.repeat(times, axis=0).repeat(times, axis=1)) is None


def test_a_jpeg_of_red_green_and_blue_is_not_taken_for_one_of_luma_and_chroma(photo):
    smooth = photo.resize((16, 12), Image.Resampling.LANCZOS).convert("L").convert("RGB").resize((128, 96))
    tinted = Image.blend(smooth, Image.new("RGB", smooth.size, "#a08060"), 0.1)
    assert estimate_history(decoded(encoded(tinted, quality=30))).quality_factor == 30
    assert estimate_history(decoded(encoded(tinted, quality=30, keep_rgb=True))) is None


@pytest.fixture(scope="module")
def page(photo) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A page of text with a JPEG on it, and where that is."""
    jpeg, top, left = Image.fromarray(decoded(encoded(photo.crop((40, 60, 204, 215)), quality=30))), 117, 203
    page = Image.new("RGB", (420, 320), "#fbfaf8")
    lines = "\n".join(f"{n} lines of text, which no JPEG was ever made of, around an image" for n in range(20))
    ImageDraw.Draw(page).text((5, 3), lines, "#222")
    page.paste(jpeg, (left, top))
    return page, (top, left, 155, 164)


def test_the_jpeg_on_a_page_is_found_and_the_page_stays_as_it_is(pipe, page):
    picture, place = page
    history = estimate_history(np.asarray(picture))
    assert history.region == place
    assert (history.offset, history.chroma_subsampling, history.quality_factor) == ((0, 0), "4:2:0", 30)
    result = pipe(picture, history=history, num_samples=2, **FAST)
    restored, (top, left, height, width) = np.asarray(result.images[0]), place
    changed = (restored != np.asarray(picture)).any(axis=2)
    assert changed[top : top + height, left : left + width].mean() > 0.5
    changed[top : top + height, left : left + width] = False
    assert not changed.any()
    assert result.std[0].shape == restored.shape
    for std in (result.std[0], result.expected_error[0]):
        assert 0 < (std > 0).any(axis=2).sum() <= height * width
    as_floats = pipe(picture, history=history, output_type="np", **FAST).images[0]
    assert np.abs(as_floats - np.asarray(picture) / 255)[:top].max() < 1e-6


def test_of_two_jpegs_on_a_page_the_second_is_found_once_the_first_is_restored(pipe, page, photo):
    picture, place = page
    picture, second = picture.copy(), Image.fromarray(decoded(encoded(photo.crop((30, 20, 190, 122)), quality=50)))
    picture.paste(second, (21, 5))
    regions = set()
    while history := estimate_history(np.asarray(picture)):
        regions.add(history.region)
        assert len(regions) <= 2
        picture = pipe(picture, history=history, **FAST).images[0]
    assert regions == {place, (5, 21, 102, 160)}


def test_lines_in_one_colour_around_a_jpeg_are_the_pages(photo):
    page, (width, height), (left, top) = Image.new("RGB", (400, 300), "#1b1f24"), (176, 160), (153, 77)
    frame = (left - 6, top - 6, left + width + 5, top + height + 5)
    ImageDraw.Draw(page).rectangle(frame, outline="white", width=2)
    jpeg = encoded(photo.crop((0, 0, width, height)), quality=30, subsampling="4:4:4")
    page.paste(Image.fromarray(decoded(jpeg)), (left, top))
    assert estimate_history(np.asarray(page)).region == (top, left, height, width)


@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-3, 3)))
def test_the_densest_rectangle_is_the_one_of_all_that_has_the_largest_sum(votes):
    top, bottom, left, right = _densest(votes)
    rows, columns = (list(combinations(range(side + 1), 2)) for side in votes.shape)
    largest = max(votes[slice(*a), slice(*b)].sum() for a in rows for b in columns)
    assert votes[top:bottom, left:right].sum() == max(largest, 0)


def test_the_jpeg_on_a_high_page_without_colour_is_found(page):
    picture, (top, left, height, width) = page
    high = Image.new("RGB", (300, 800), "white")
    ImageDraw.Draw(high).text((5, 3), "\n".join(f"{n} lines of text " * 3 for n in range(53)), "black")
    high.paste(picture.crop((left, top, left + width, top + height)), (51, 500))
    assert estimate_history(np.asarray(high)).region == (500, 51, height, width)


def test_a_page_without_a_jpeg_shows_none(page):
    picture, (top, left, height, width) = page
    picture = picture.copy()
    ImageDraw.Draw(picture).rectangle((left, top, left + width, top + height), "#fbfaf8")
    assert estimate_history(np.asarray(picture)) is None


def saved_again(photo, first, second, left=0, top=0) -> bytes:
    return encoded(Image.fromarray(decoded(encoded(photo, quality=first))[top:, left:]), quality=second)


def earlier_than(data):
    tables = [component.quantization_table for component in JPEGFile.open(data).components]
    return estimate_earlier(decoded(data), tables)


@pytest.mark.parametrize(("first", "second"), [(10, 75), (40, 75), (20, 85), (60, 85), (40, 92), (20, 97)])
def test_a_file_saved_again_shows_the_first_one(part, first, second):
    earlier = earlier_than(saved_again(part, first, second))
    assert (earlier.quality_factor, earlier.offset, earlier.chroma_subsampling) == (first, (0, 0), "4:2:0")


@pytest.mark.parametrize(("first", "second"), [(10, 85), (20, 92), (40, 97)])
def test_a_crop_saved_again_shows_the_first_one_and_its_grid(part, first, second):
    earlier = earlier_than(saved_again(part, first, second, 5, 3))
    assert (earlier.offset[0] % 8, earlier.offset[1] % 8) == (3, 5)
    assert abs(earlier.quality_factor - first) <= 2


def test_an_earlier_jpeg_is_looked_for_once_and_only_where_it_is_asked_for(pipe, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved_again(photo.crop((40, 60, 168, 188)), 20, 88))
    searches = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code is estimate_earlier.__code__:
            searches.append(frame)

    sys.setprofile(profile)
    try:
        restore_file(pipe, Task(tmp_path / "a.jpg", tmp_path / "a.png"), **FAST)
        assert not searches
        file = open_image(tmp_path / "a.jpg")
        assert not searches
        assert file.earlier is file.earlier
    finally:
        sys.setprofile(None)
    assert len(searches) == 1
    assert (file.earlier.history.quality_factor, file.earlier.double_compression) == (20, True)


def test_from_the_first_file_more_is_restored_than_from_the_one_at_hand(pipe, photo):
    part = photo.crop((40, 60, 216, 220))
    data, true = saved_again(part, 20, 85), np.asarray(part).astype(float)
    pictures = [
        pipe(source, generator=torch.Generator().manual_seed(0), preset="fast").images[0]
        for source in (encoded(part, quality=20), DecodedJPEG.open(data), data)
    ]
    of_first, below, at_hand = (np.square(np.asarray(picture) - true).mean() for picture in pictures)
    assert below < 1.05 * of_first
    assert below < 0.9 * at_hand


@pytest.mark.parametrize("quality", [50, 60, 75, 92, 97, 98, 100])
def test_a_file_saved_once_shows_no_earlier_one(part, quality):
    once = encoded(part, quality=quality)
    tables = [component.quantization_table for component in JPEGFile.open(once).components]
    assert estimate_earlier(decoded(once), tables) is None


def test_what_is_assumed_becomes_the_operator(photo):
    history = assume_history(np.asarray(photo), 30, "4:4:4", (-2, -3))
    seen = observe(photo, history=history)
    assert seen.operator.subsampling[1] == (1, 1)
    assert (seen.origin, seen.size) == ((6, 5), (256, 256))
    with pytest.raises(ValueError, match="4:1:0"):
        assume_history(np.asarray(photo), 30, "4:1:0")
    with pytest.raises(ValueError, match="history"):
        observe(photo, history="guess")


def test_of_a_large_picture_a_part_of_the_blocks_is_enough(photo):
    pixels = np.tile(decoded(encoded(photo, quality=50)), (6, 8, 1))
    start = time.process_time()
    assert estimate_history(pixels[:512, :512]).quality_factor == 50
    small = time.process_time() - start
    assert estimate_history(pixels).quality_factor == 50
    assert time.process_time() - start - small < 6 * small  # of twelve times the pixels


def test_restore_and_inspect_say_that_it_was_estimated(photo, tmp_path):
    Image.fromarray(decoded(encoded(photo, quality=30))[:128, 5:133]).save(tmp_path / "shot.png")
    photo.crop((0, 0, 96, 96)).save(tmp_path / "clean.png")
    once = ("--steps", "1", "--samples", "1", "--init-timestep", "50")
    done = ddrm_jpeg("restore", "shot.png", "clean.png", *once, "--json-log", "log.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "estimated: a JPEG of about quality 30, 4:2:0, cropped by 0 rows and 5 columns" in done.stdout
    assert "clean.png: its pixels show no JPEG" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["restored", "failed"]
    assert lines[0]["history"].startswith("estimated")
    assert Image.open(lines_target := tmp_path / lines[0]["target"]).size == (128, 128), lines_target
    facts = json.loads(ddrm_jpeg("inspect", "shot.png", "--json", cwd=tmp_path).stdout)
    assert (facts["quality_factor"], facts["offset"], facts["chroma_subsampling"]) == (30, [0, 5], "4:2:0")
    assumed = ddrm_jpeg("restore", "clean.png", "--assume-quality", "30", "--grid", "3,2", *once, cwd=tmp_path)
    assert "assumed: a JPEG of about quality 30" in assumed.stdout
    wrong = ddrm_jpeg("restore", "clean.png", "--grid", "3,2", cwd=tmp_path)
    assert (wrong.returncode, "--assume-quality" in wrong.stderr) == (2, True)


def test_a_file_saved_again_is_restored_from_the_first_when_asked_to(photo, tmp_path):
    (tmp_path / "again.jpg").write_bytes(saved_again(photo.crop((40, 60, 168, 188)), 20, 88))
    once = ("--steps", "1", "--samples", "1", "--init-timestep", "50")
    done = ddrm_jpeg("restore", "again.jpg", *once, cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 1, "nobody asked for an earlier JPEG, and none is looked for"
    done = ddrm_jpeg("restore", "again.jpg", "--double-compression", "--overwrite", *once, cwd=tmp_path)
    assert "estimated: double compression, first as a JPEG of about quality 20" in done.stdout
    told = ddrm_jpeg("inspect", "again.jpg", cwd=tmp_path).stdout
    assert "first as a JPEG of about quality 20" in told
    assert "; then at 88" in told
