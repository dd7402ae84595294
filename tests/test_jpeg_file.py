import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jpeglib
import numpy as np
import psutil
import pytest
import torch
from conftest import jpeg_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline_ddrm_jpeg import JPEGDamageError, JPEGFile, JPEGFileError, observe
from pipeline_ddrm_jpeg.jpeg import reader as jpeg_reader


def cjpeg(picture, *options):
    """The image as the program cjpeg writes it."""
    if shutil.which("cjpeg") is None:
        pytest.skip("cjpeg is not installed (Debian: libjpeg-turbo-progs)")
    stream = io.BytesIO()
    picture.save(stream, "PPM")
    return subprocess.run(["cjpeg", *options], input=stream.getvalue(), capture_output=True, check=True).stdout


def segment(data: bytes, marker: int) -> int:
    """Offset of a marker segment of the header."""
    position = 2
    while data[position + 1] != marker:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def insert(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """The file with marker segments put after SOI."""
    made = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:2] + made + data[2:]


def drop(data: bytes, marker: int) -> bytes:
    start = segment(data, marker)
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(1, 1), (53, 38), (64, 48)])
def test_pillow_files_are_read_with_their_geometry_and_tables(photo, subsampling, progressive, size):
    data = jpeg_bytes(photo.resize(size), quality=35, subsampling=subsampling, progressive=progressive)
    file = JPEGFile.open(data)
    assert (file.width, file.height) == size
    assert (file.color_space, file.chroma_subsampling, file.progressive) == ("YCbCr", subsampling, progressive)
    assert (file.quality_factor, file.quality_factor_is_exact) == (35, True)
    assert file.file_size == len(data)
    assert file.bits_per_pixel == pytest.approx(8 * len(data) / (size[0] * size[1]))
    down, across = (-(-extent // unit) for extent, unit in zip((size[1], size[0]), file.mcu_size, strict=True))
    for component, plane in zip(file.components, file.coefficients, strict=True):
        assert plane.dtype == np.int16
        assert plane.shape == (down * component.vertical_factor, across * component.horizontal_factor, 8, 8)


@pytest.mark.parametrize("encoder", ["6b", "9e", "turbo210", "mozjpeg101", "mozjpeg403"])
def test_coefficients_decode_to_the_pixels_that_a_decoder_gives(photo, encoder, tmp_path):
    path = tmp_path / "photo.jpg"
    with jpeglib.version(encoder):
        jpeg = jpeglib.from_spatial(np.asarray(photo.resize((100, 75))))
        jpeg.samp_factor = "4:4:4"
        jpeg.write_spatial(str(path), qt=60)
    file = JPEGFile.open(path)
    seen = observe(file)
    ours = (seen.operator.decode(seen.y)[0] + 1) * 127.5
    ours = ours[:, : file.height, : file.width].clamp(0, 255).permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    assert np.abs(ours - theirs).max() < 5  # the decoder rounds at every stage
    assert np.abs(ours - theirs).mean() < 0.5


@pytest.mark.parametrize(
    ("factors", "name"),
    {
        "1x1": "4:4:4",
        "2x1": "4:2:2",
        "1x2": "4:4:0",
        "2x2": "4:2:0",
        "4x1": "4:1:1",
        "4x2": "4:1:0",
        "3x1": None,
        "4x1,1x1,2x1": None,
        "1x1,2x2,1x1": None,
    }.items(),
)
def test_every_whole_sampling_ratio_is_read(photo, factors, name):
    data = cjpeg(photo.resize((53, 38)), "-quality", "40", "-sample", factors)
    file = JPEGFile.open(data)
    assert file.chroma_subsampling == name
    seen = observe(file)
    picture = (seen.operator.decode(seen.y)[0, :, :38, :53] + 1) * 127.5
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32)
    error = picture.clamp(0, 255).permute(1, 2, 0).numpy() - decoded
    assert np.abs(error).mean() < 6  # decoders smooth chroma, and this repeats it


def test_planes_are_padded_to_whole_mcus_with_the_last_dc(photo):
    file = JPEGFile.open(jpeg_bytes(photo.resize((53, 38)), subsampling="4:2:0"))
    luma = file.coefficients[0]
    assert luma.shape[:2] == (6, 8)
    np.testing.assert_array_equal(luma[:5, 7, 0, 0], luma[:5, 6, 0, 0])
    assert not luma[:, 7].reshape(6, 64)[:, 1:].any()
    np.testing.assert_array_equal(luma[5, :, 0, 0], luma[4, :, 0, 0])


def test_greyscale_files_have_one_component_whatever_its_sampling_factors_say(photo):
    data = bytearray(jpeg_bytes(photo.convert("L").resize((53, 38))))
    plain = JPEGFile.open(bytes(data))
    data[segment(data, 0xC0) + 11] = 0x22
    odd = JPEGFile.open(bytes(data))
    assert plain.color_space == odd.color_space == "L"
    assert plain.mcu_size == odd.mcu_size == (8, 8)
    np.testing.assert_array_equal(plain.coefficients[0], odd.coefficients[0])


def test_a_colour_space_is_chosen_as_libjpeg_does_and_says_why(photo):
    def chosen(data):
        colour = JPEGFile.open(bytes(data)).colour
        return colour.name, colour.reason

    data = jpeg_bytes(photo.resize((32, 32)), subsampling="4:4:4")
    assert chosen(data) == ("YCbCr", "JFIF marker")
    assert chosen(jpeg_bytes(photo.convert("L"))) == ("L", "one component")
    bare = drop(data, 0xE0)
    assert chosen(bare) == ("YCbCr", "three components, and nothing that says otherwise")
    adobe = b"Adobe\0\x64\0\0\0\0"
    assert chosen(insert(bare, (0xEE, adobe + b"\0"))) == ("RGB", "Adobe marker, transform 0")
    assert chosen(insert(bare, (0xEE, adobe + b"\1"))) == ("YCbCr", "Adobe marker, transform 1")
    lettered = bytearray(bare)
    frame, scan = segment(bare, 0xC0), segment(bare, 0xDA)
    for i, letter in enumerate(b"RGB"):
        lettered[frame + 10 + 3 * i] = lettered[scan + 5 + 2 * i] = letter
    assert chosen(lettered) == ("RGB", "components called R, G and B")
    inks = jpeg_bytes(photo.resize((32, 24)).convert("CMYK"))
    assert chosen(drop(inks, 0xEE)) == ("CMYK", "four components, no Adobe marker")
    assert chosen(insert(drop(inks, 0xEE), (0xEE, adobe + b"\2"))) == ("YCCK", "Adobe marker, transform 2")


MARKERS = [
    *((0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"[:length]) for length in (7, 13, 14)),
    *((0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((transform,))) for transform in (0, 1, 2, 9)),
    (0xEE, b"Adobe\0\x64\0\0\0\0"),
    (0xE0, b"JFXX\0\x10" + bytes(20)),
]


@settings(max_examples=60)
@given(
    data=st.data(),
    identifiers=st.sampled_from([b"\1\2\3", b"RGB", b"rgb", b"BGR", b"\0\1\2", b"\x22\1\x11"]),
    markers=st.lists(st.sampled_from(MARKERS), max_size=3),
)
def test_colour_space_is_that_of_libjpeg_whatever_markers_there_are(photo, data, identifiers, markers):
    kind = {"progressive": data.draw(st.booleans()), "subsampling": "4:4:4"}
    jpeg = bytearray(drop(jpeg_bytes(photo.resize((8, 8)), quality=90, **kind), 0xE0))
    frame = segment(jpeg, 0xC2 if kind["progressive"] else 0xC0)
    scans = [i for i in range(len(jpeg) - 1) if jpeg[i : i + 2] == b"\xff\xda"]
    for at, step, count in [(frame + 10, 3, 3), *((scan + 5, 2, jpeg[scan + 4]) for scan in scans)]:
        for i in range(count):
            jpeg[at + step * i] = identifiers[jpeg[at + step * i] - 1]
    jpeg = bytes(jpeg)
    for marker, body in markers:
        at = data.draw(st.sampled_from([2, frame, *scans]))
        jpeg = jpeg[:at] + insert(jpeg[:2], (marker, body))[2:] + jpeg[at:]
        frame, *scans = (place + (place >= at) * (len(body) + 4) for place in (frame, *scans))
    file = JPEGFile.open(jpeg)
    seen = observe(file)
    ours = (seen.operator.decode(seen.y)[0] + 1) * 127.5
    theirs = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=np.float32)
    assert np.abs(ours.clamp(0, 255).permute(1, 2, 0).numpy() - theirs).max() < 5


def test_16_bit_tables_and_restart_markers_are_read(photo):
    file = JPEGFile.open(jpeg_bytes(photo.resize((64, 64)), qtables=[[300] * 64, [900] * 64], restart_marker_blocks=2))
    assert file.components[0].quantization_table.tolist() == [[300] * 8] * 8
    assert file.components[2].quantization_table.tolist() == [[900] * 8] * 8
    assert file.restart_interval == 2


def test_metadata_is_kept_for_the_writer(photo):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a cat"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() * 150  # more than one chunk
    data = jpeg_bytes(photo.resize((32, 32)), exif=exif, icc_profile=profile, xmp=b"<x/>", comment=b"hello")
    file = JPEGFile.open(data)
    assert file.metadata.exif == exif.tobytes()
    assert file.metadata.icc_profile == profile
    assert (file.metadata.xmp, file.metadata.comments, file.orientation) == (b"<x/>", (b"hello",), 6)


def test_an_unreadable_exif_block_is_left_out(photo):
    data = insert(jpeg_bytes(photo.resize((16, 16))), (0xE1, b"Exif\0\0garbage"))
    file = JPEGFile.open(data)
    assert (file.orientation, file.metadata.exif) == (1, None)


def test_more_markers_than_the_decoder_has_room_for_do_no_harm(photo):
    data = jpeg_bytes(photo.resize((16, 16)))
    many = insert(data, *[(0xE5, b"x" * 1000), (0xFE, b"y" * 50)] * 100)
    for ours, theirs in zip(JPEGFile.open(many).coefficients, JPEGFile.open(data).coefficients, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_path_bytes_and_file_object_give_the_same(photo, tmp_path):
    data = jpeg_bytes(photo.resize((40, 30)))
    path = tmp_path / "ünïcode 写真.jpg"
    path.write_bytes(data)
    with path.open("rb") as stream:
        files = [JPEGFile.open(source) for source in (path, str(path), data, bytearray(data), stream)]
    assert files[0].name == str(path)
    assert files[2].name == "<bytes>"
    for file in files[1:]:
        np.testing.assert_array_equal(file.coefficients[0], files[0].coefficients[0])


def test_what_follows_the_end_of_image_is_ignored(photo):
    data = jpeg_bytes(photo.resize((40, 30)))
    assert JPEGFile.open(data + b"\xff\xd8 another file").file_size == len(data)


REFUSED = {
    "empty": (lambda data: b"", "empty"),
    "noise": (lambda data: b"\x01\x02" + data, "not a JPEG, nor an image of a known kind"),
    "arithmetic": (lambda data: data.replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic-coded"),
    "lossless": (lambda data: data.replace(b"\xff\xc0", b"\xff\xc3", 1), "lossless"),
    "hierarchical": (lambda data: data.replace(b"\xff\xc0", b"\xff\xc5", 1), "hierarchical"),
    "12 bits": (lambda data: data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", 1), "12-bit"),
    "no height": (
        lambda data: data.replace(b"\xff\xc0\0\x11\x08\0\x18", b"\xff\xc0\0\x11\x08\0\0", 1),
        "no DNL marker",
    ),
    "no width": (lambda data: data.replace(b"\x08\0\x18\0\x20", b"\x08\0\x18\0\0", 1), "width of 0"),
    "absurd size": (lambda data: data.replace(b"\x08\0\x18\0\x20", b"\x08\xff\xdc\xff\xdc", 1), "65500 x 65500"),
    "no table": (lambda data: drop(drop(data, 0xDB), 0xDB), "table 0 is used but never defined"),
    "zero step": (lambda data: data.replace(b"\xff\xdb\0\x43\0\x10", b"\xff\xdb\0\x43\0\0", 1), "step of 0"),
    "two frames": (lambda data: data.replace(b"\xff\xc0", data[segment(data, 0xC0) :][:19] + b"\xff\xc0", 1), "second"),
    "huge factors": (lambda data: data.replace(b"\1\x22\0\2\x11", b"\1\x52\0\2\x11", 1), "sampling factors 5x2"),
    "odd ratio": (lambda data: data.replace(b"\1\x22\0\2\x11", b"\1\x32\0\2\x21", 1), "not a whole number"),
    "bad length": (lambda data: data[:4] + b"\0\1" + data[6:], "claims 1 bytes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_restored_is_refused_with_its_name(photo, kind):
    change, message = REFUSED[kind]
    data = jpeg_bytes(photo.resize((32, 24)), quality=50)
    changed = change(data)
    assert changed != data
    with pytest.raises(JPEGFileError, match=message):
        JPEGFile.open(changed)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WebP", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_pictures_of_other_kinds_are_named(photo, kind):
    stream = io.BytesIO()
    photo.resize((32, 24)).save(stream, kind)
    name = {"JPEG2000": "JPEG 2000"}.get(kind, kind)
    with pytest.raises(JPEGFileError, match=rf"not a JPEG but a {name} image, .*; give the JPEG it was made from"):
        JPEGFile.open(stream.getvalue())


def test_four_components_are_four_inks(photo):
    cmyk = jpeg_bytes(photo.resize((32, 24)).convert("CMYK"))
    file = JPEGFile.open(cmyk)
    assert (file.color_space, len(file.coefficients), file.tint) == ("CMYK", 4, None)
    assert file.remarks == ("the colour space CMYK, which is written as RGB",)
    coarse = bytearray(cmyk)
    frame = coarse.index(b"\xff\xc0")
    coarse[frame + 11] = 0x22  # of the first ink, so that the black has half as many samples
    with pytest.raises(JPEGFileError, match="whose black is coarser"):
        JPEGFile.open(bytes(coarse))


def test_a_message_names_the_file(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("hello")
    with pytest.raises(JPEGFileError, match=r"notes\.jpg: not a JPEG"):
        JPEGFile.open(path)


def test_a_file_opened_as_text_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("hello")
    with path.open() as stream, pytest.raises(TypeError, match="binary mode"):
        JPEGFile.open(stream)


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@settings(max_examples=25)
@given(data=st.data())
def test_a_truncated_file_is_detected_wherever_it_was_cut(photo, progressive, data):
    whole = jpeg_bytes(photo.resize((48, 40)), quality=60, progressive=progressive)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(JPEGFileError):
        JPEGFile.open(whole[:cut])


def test_a_file_cut_in_its_scan_and_closed_again_is_detected(photo):
    whole = jpeg_bytes(photo.resize((64, 64)), quality=60)
    start = segment(whole, 0xDA) + 14
    for cut in np.linspace(start, len(whole) - 16, 6).astype(int):
        with pytest.raises(JPEGFileError, match="truncated"):
            JPEGFile.open(whole[:cut] + b"\xff\xd9")


def test_a_progressive_file_that_lacks_its_last_scans_says_which_bits_it_lacks(photo):
    """As the decoder that reads damaged files finds, which does not know that the file is meant to end."""
    whole = jpeg_bytes(photo.resize((68, 60)), quality=60, progressive=True)
    scans = [i for i in range(len(whole) - 1) if whole[i : i + 2] == b"\xff\xda"]
    for scan in scans[1:]:
        tables = whole.rfind(b"\xff\xc4", 0, scan)
        file = JPEGFile.open(whole[:tables] + b"\xff\xd9")
        assert file.remarks == ("fewer scans than its frame announces; what they leave out is made up",)
        repaired = JPEGFile.open(whole[:tables], repair=True)
        assert file.damage == ()
        for ours, theirs in zip(
            (*file.coefficients, *file.missing_bits), (*repaired.coefficients, *repaired.missing_bits), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        with pytest.raises(JPEGDamageError):
            JPEGFile.open(whole[: tables - 20] + b"\xff\xd9")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
@pytest.mark.parametrize("claimed", [0, 17, 48, 400])
def test_the_height_behind_the_first_scan_is_that_of_the_image(photo, claimed, options):
    whole = jpeg_bytes(photo.resize((64, 40)), quality=60, **options)
    frame = re.search(rb"\xff[\xc0\xc2]\0\x11\x08", whole).end()
    scan = segment(whole, 0xDA) + 14
    end = re.compile(rb"\xff(?![\0\xd0-\xd7])").search(whole, scan).start()
    dnl = whole[:frame] + struct.pack(">H", claimed) + whole[frame + 2 : end] + b"\xff\xdc\0\4\0\x28" + whole[end:]
    file, expected = JPEGFile.open(dnl), JPEGFile.open(whole)
    assert (file.height, file.remarks) == (40, (f"a height of {claimed} that its DNL marker corrects",))
    for ours, theirs in zip(file.coefficients, expected.coefficients, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    cut = JPEGFile.open(dnl[: end - 9] + dnl[end:], repair=True)
    assert (cut.height, bool(cut.damage)) == (40, True)
    assert Image.open(io.BytesIO(file.bare)).size == (64, 40)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(photo, data):
    kind = data.draw(st.sampled_from(["baseline", "progressive", "greyscale", "restarts"]))
    picture = photo.convert("L" if kind == "greyscale" else "RGB").resize((53, 38))
    options = {"progressive": kind == "progressive", "restart_marker_blocks": 2 if kind == "restarts" else 0}
    damaged = bytearray(jpeg_bytes(picture, quality=40, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(2, len(damaged) - 1))
        match data.draw(st.sampled_from(["change", "insert", "delete", "repeat"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "insert":
                damaged[at:at] = data.draw(st.binary(max_size=20))
            case "delete":
                del damaged[at : at + data.draw(st.integers(1, 20))]
            case "repeat":
                damaged[at:at] = damaged[max(2, at - data.draw(st.integers(1, 300))) : at]
    try:
        file = JPEGFile.open(bytes(damaged))
    except JPEGFileError:
        return
    assert all(plane.shape[2:] == (8, 8) for plane in file.coefficients)


def test_a_size_that_the_data_cannot_fill_is_refused_before_it_is_decoded(photo):
    data = bytearray(jpeg_bytes(photo.resize((32, 24))))
    frame = segment(data, 0xC0)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 8000, 8000)
    with pytest.raises(JPEGFileError, match=r"claims 8000 x 8000 pixels, but a scan has only \d+ bytes"):
        JPEGFile.open(bytes(data))


def test_reading_does_not_load_torch():
    code = "import sys, pipeline_ddrm_jpeg.jpeg.file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_measurement_of_a_file_is_float32_with_integer_values(photo):
    file = JPEGFile.open(jpeg_bytes(photo.resize((32, 32))))
    levels = observe(file).y.levels
    assert [part.dtype for part in levels] == [torch.float32] * 3
    np.testing.assert_array_equal(levels[0][0].numpy(), file.coefficients[0])


def test_a_frame_of_motion_jpeg_without_huffman_tables_is_read_with_the_standard_ones(photo):
    whole = jpeg_bytes(photo.resize((32, 24)))
    bare = whole
    while b"\xff\xc4" in bare:
        bare = drop(bare, 0xC4)
    for ours, theirs in zip(JPEGFile.open(bare).coefficients, JPEGFile.open(whole).coefficients, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_whoever_is_killed_while_reading_leaves_no_copy_of_the_file(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((2000, 1500))))
    (tmp_path / "temporary").mkdir()
    code = "import sys; from pipeline_ddrm_jpeg import JPEGFile\nwhile True: JPEGFile.open(sys.argv[1])"
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.jpg")], env=environment)
        while not (readers := psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
        for killed in (process, *readers):
            killed.kill()
        process.wait()
        assert not list((tmp_path / "temporary").rglob("*"))


@pytest.fixture
def no_servers():
    jpeg_reader._stop_servers()
    yield
    jpeg_reader._stop_servers()


served = pytest.mark.skipif(not jpeg_reader._CAN_SERVE, reason="this system does not fork")


@served
def test_files_read_at_once_are_read_right_and_leave_few_processes(photo, no_servers):
    files = [jpeg_bytes(photo.resize((40 + 8 * i, 48)), quality=20 + i) for i in range(12)]
    alone = [JPEGFile.open(data) for data in files]
    assert len(jpeg_reader._idle) == 1
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(JPEGFile.open, files))
    for one, other in zip(alone, together, strict=True):
        for plane, same in zip(one.coefficients, other.coefficients, strict=True):
            np.testing.assert_array_equal(plane, same)
    servers = [psutil.Process(server.process.pid) for server in jpeg_reader._idle]
    assert 1 <= len(servers) <= 2
    assert not any(server.children() for server in servers)
    jpeg_reader._stop_servers()
    assert not any(server.is_running() for server in servers)


@served
def test_a_reader_that_hangs_ends_with_a_sentence_and_the_next_file_is_read(photo, no_servers, monkeypatch):
    data = jpeg_bytes(photo)
    JPEGFile.open(data)
    server = psutil.Process(jpeg_reader._idle[0].process.pid)
    server.suspend()
    jpeg_reader._idle[0].connection.settimeout(0.2)
    with pytest.raises(JPEGFileError, match="took more than 120 seconds"):
        JPEGFile.open(data)
    assert not server.is_running()
    assert JPEGFile.open(data).width == photo.width


@served
def test_a_server_of_readers_that_is_killed_costs_no_file(photo, no_servers):
    data = jpeg_bytes(photo)
    JPEGFile.open(data)
    psutil.Process(jpeg_reader._idle[0].process.pid).kill()
    assert JPEGFile.open(data).width == photo.width
    assert JPEGFile.open(data).width == photo.width


@served
def test_what_a_reader_left_whose_server_has_ended_is_not_taken_for_coefficients(photo, no_servers):
    jpeg = JPEGFile.open(jpeg_bytes(photo.resize((32, 32))))
    psutil.Process(jpeg_reader._idle[0].process.pid).kill()
    shapes = [plane.shape[:2] for plane in jpeg.coefficients]
    with jpeg_reader._unnamed_file() as stream, jpeg_reader._unnamed_file() as planes:
        stream.write(jpeg.bare)
        stream.seek(0)
        os.write(planes.fileno(), bytes(2**16))
        status, _ = jpeg_reader._run_reader(stream, planes, ",".join(f"{rows}x{columns}" for rows, columns in shapes))
        planes.seek(0)
        assert (status, planes.read()) == (0, b"".join(plane.tobytes() for plane in jpeg.coefficients))


@served
def test_where_nobody_is_told_how_children_end_files_are_read_and_damage_is_found(photo, no_servers, monkeypatch):
    whole = jpeg_bytes(photo, quality=20)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for can_serve in (True, False):
            monkeypatch.setattr(jpeg_reader, "_CAN_SERVE", can_serve)
            assert JPEGFile.open(whole).quality_factor == 20
            with pytest.raises(JPEGDamageError):
                JPEGFile.open(whole[:-1000])
            assert len(jpeg_reader._idle) == 1, "which ends when there is nothing more to answer"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_inside_an_application_its_environment_s_python_reads_and_the_application_is_not_started(
    photo, no_servers, tmp_path, monkeypatch
):
    data, started = jpeg_bytes(photo.resize((32, 24)), quality=20), tmp_path / "started"
    application = tmp_path / "application-with-python3"
    application.write_text(f"#!/bin/sh\ntouch {started}\n")
    application.chmod(0o755)
    python = jpeg_reader._command()
    for executable in ("", None, str(tmp_path / "python"), str(application)):
        monkeypatch.setattr(sys, "executable", executable)
        assert Path(jpeg_reader._command()[0]).samefile(python[0])
    assert JPEGFile.open(data).quality_factor == 20
    jpeg_reader._stop_servers()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(JPEGFileError, match=f"there is none to start: sys.executable is '{application}'"):
        JPEGFile.open(data)
    assert not started.exists()

    application.rename(tmp_path / "python")  # by its name alone it is one
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(JPEGFileError, match="the process that reads its coefficients did not start") as raised:
        JPEGFile.open(data)
    assert not isinstance(raised.value, JPEGDamageError)


@served
def test_a_forked_process_reads_by_a_server_of_its_own(photo, no_servers):
    data = jpeg_bytes(photo)
    JPEGFile.open(data)
    child = os.fork()
    if not child:
        status = 1
        try:
            started = not jpeg_reader._idle
            status = 0 if started and JPEGFile.open(data).width == photo.width else 2
        finally:
            jpeg_reader._stop_servers()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert JPEGFile.open(data).width == photo.width


@served
def test_servers_end_with_the_process_that_started_them(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo))
    code = "import sys, os, signal; from pipeline_ddrm_jpeg.jpeg import reader\n"
    code += "from pipeline_ddrm_jpeg import JPEGFile; JPEGFile.open(sys.argv[1])"
    code += "; print(reader._idle[0].process.pid, flush=True); os.kill(os.getpid(), int(sys.argv[2]))"
    for number in (0, 9):  # an end in peace, and one that nobody can prepare for
        process = subprocess.run([sys.executable, "-c", code, tmp_path / "a.jpg", str(number)], stdout=subprocess.PIPE)
        server = int(process.stdout)
        for _ in range(100):
            if not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the server is still there after ten seconds")
