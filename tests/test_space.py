"""The web page: its files, and, in a real browser, what visitors do with it (`make test-browser`)."""

from __future__ import annotations

import io
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, jpeg_bytes
from huggingface_hub import SpaceCard
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline
from pipeline_ddrm_jpeg.restoration import Task, restore_file

SPACE = ROOT / "space"
SECONDS = 1000  # milliseconds, as Playwright counts
browser_test = pytest.mark.browser


def test_the_front_matter_names_what_is_installed_and_what_is_there() -> None:
    card = SpaceCard.load(SPACE / "README.md").data
    assert card.sdk == "gradio"
    assert f"gradio=={card.sdk_version}\n" in (ROOT / "constraints.txt").read_text()
    assert (SPACE / card.app_file).is_file()
    assert len(card.short_description) <= 60  # the Hub refuses a longer one
    assert "pipeline-ddrm-jpeg[space]" in (SPACE / "requirements.txt").read_text().split()


def test_the_examples_are_pictures_and_the_page_names_each() -> None:
    page = (SPACE / "app.py").read_text()
    for path in (SPACE / "examples").iterdir():
        assert f'"{path.name}"' in page
        with Image.open(path) as picture:
            picture.load()


# --- In the browser ---


@pytest.fixture(scope="module")
def space(prior_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page as `make space` starts it, with a tiny prior and small limits."""
    folder = tmp_path_factory.mktemp("space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DDRM_JPEG_PRIOR": str(prior_folder),
        "DDRM_JPEG_MAX_MEGAPIXELS": "0.25",
        "DDRM_JPEG_MAX_MEGABYTES": "0.3",
        "DDRM_JPEG_MAX_SECONDS": "100000",  # however busy the machine is
        "DDRM_JPEG_MAX_WAITING": "2",
        "DDRM_JPEG_CONCURRENCY": "2",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }
    log = folder / "log"
    with open(log, "wb") as stream:
        server = subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=stream, stderr=stream)
    try:
        wait_for(lambda: "Running on" in log.read_text() or server.poll() is not None)
        assert server.poll() is None, log.read_text()
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", log=log, uploads=folder / "uploads")
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        finally:
            server.kill()
    left = {path.name for path in (folder / "uploads").rglob("*") if path.is_file()}
    assert left <= {path.name for path in (SPACE / "examples").iterdir()}
    assert "Traceback" not in log.read_text(), log.read_text()


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("these tests need chromium; on Debian: apt-get install chromium")
    quiet = ("background-networking", "component-update", "sync")
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visitor(space: SimpleNamespace, chromium: Any) -> Iterator[Any]:
    """Opens the page for one more visitor."""
    contexts = []

    def open_page(query: str = "", **options: Any) -> Any:
        contexts.append(chromium.new_context(**options))
        contexts[-1].set_default_timeout(90 * SECONDS)  # on a busy machine
        page = contexts[-1].new_page()
        page.goto(f"{space.url}/{query}")
        page.get_by_role("button", name="Restore", exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def jpeg(photo: Image.Image) -> bytes:
    """A small picture stored on its side, with EXIF data."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a cat"
    return jpeg_bytes(photo.resize((112, 84)), quality=12, exif=exif)


def choose(page: Any, data: bytes, name: str = "chelsea.jpg") -> None:
    """Upload a file; one that the page does not take is chosen, and no more."""
    page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": "image/jpeg", "buffer": data})
    if len(data) <= 300_000:
        page.get_by_role("button", name="Remove Image").wait_for()


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def downloaded(page: Any) -> tuple[str, bytes]:
    page.locator(".compare img.right").wait_for()
    with page.expect_download() as download:
        press(page, "Download PNG")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def run_snippet(page: Any, folder: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python that the page shows, in a folder where the prior lies."""
    page.get_by_role("button", name="The same in Python").click()
    code = page.locator("#python .cm-content")
    code.wait_for()
    (folder / "snippet.py").write_text("\n".join(code.locator(".cm-line").all_inner_texts()))
    if not (folder / prior.name).exists():
        (folder / prior.name).symlink_to(prior)
    monkeypatch.chdir(folder)
    runpy.run_path("snippet.py")


@browser_test
def test_a_restored_picture_is_the_one_that_python_makes(visitor, jpeg, prior_folder, tmp_path, monkeypatch) -> None:
    page = visitor("?num_samples=2&num_inference_steps=3&seed=5")
    choose(page, jpeg)
    facts = page.locator("#facts")
    facts.get_by_text(re.compile("^112 . 84$")).wait_for()  # as stored
    for text in ("12", "YCbCr 4:2:0", "baseline", "EXIF"):
        assert text in facts.inner_text()
    press(page, "Restore")
    name, data = downloaded(page)
    assert name == "chelsea_restored.png"
    (tmp_path / "chelsea.jpg").write_bytes(jpeg)

    pipe = DDRMJPEGPipeline.from_prior(prior_folder)
    settings = PRESETS["fast"] | {"num_samples": 2, "num_inference_steps": 3}
    kept = restore_file(pipe, Task(tmp_path / "chelsea.jpg", tmp_path / "expected.png"), seed=5, **settings).consistency
    assert data == (tmp_path / "expected.png").read_bytes()
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert data == (tmp_path / name).read_bytes()

    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (84, 112)
        assert picture.getexif()[0x010E] == "a cat"
    shown = float(page.locator(".verdict strong").inner_text().split()[0])
    assert 100 * kept - 0.01 <= shown <= 100 * kept
    # Both sides of the divider have been loaded as they are, and the map of two samples is there.
    for image in page.locator(".compare img, #deviation img").all():
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [84, 112]
    assert "grey levels" in page.locator("#deviation").inner_text()


@browser_test
def test_the_divider_and_the_zoom_obey_the_keyboard(visitor, jpeg) -> None:
    page = visitor(viewport={"width": 390, "height": 844}, color_scheme="dark")
    choose(page, jpeg)
    press(page, "Restore")
    pair, after = page.locator(".compare .pair"), page.locator(".compare img.right")
    divider = page.get_by_role("slider", name="Divider between before and after")
    divider.focus()
    page.keyboard.press("End")
    assert after.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 100%)"
    page.keyboard.press("Home")
    assert after.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 0%)"
    page.get_by_role("radio", name="fit").focus()
    page.keyboard.press("ArrowRight")
    assert pair.evaluate("pair => pair.offsetWidth") == 84
    page.keyboard.press("End")
    page.get_by_role("radio", name=re.compile("^4")).check()
    assert pair.evaluate("pair => pair.offsetWidth") == 4 * 84
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@browser_test
@pytest.mark.parametrize(
    ("tab", "button", "name"),
    [
        ("Explore", "Compress, then restore", "clean_q10_restored.png"),
        ("Dequantize", "Quantize, then restore", "clean_3bit_restored.png"),
    ],
)
def test_a_picture_made_worse_is_compared_with_itself(
    visitor, photo, tab, button, name, prior_folder, tmp_path, monkeypatch
) -> None:
    photo.resize((300, 225)).crop((0, 0, 300, 120)).save(tmp_path / "clean.png")
    page = visitor()
    page.get_by_role("tab", name=tab).click()
    start = page.get_by_role("button", name=button)
    start.wait_for()
    page.get_by_role("tabpanel").locator("input[type=file]").set_input_files(tmp_path / "clean.png")
    page.get_by_role("button", name="Remove Image").wait_for()
    start.click()
    found, data = downloaded(page)
    assert found == name
    table = page.locator(".numbers").inner_text()
    assert len(re.findall(r"\d+\.\d\d dB", table)) == len(re.findall(r"0\.\d{4}", table)) == 2
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert data == (tmp_path / name).read_bytes()
    page.get_by_label("original").check()
    assert page.locator(".compare img[alt=original]").is_visible()


@browser_test
def test_what_cannot_be_restored_is_told_in_one_sentence_that_names_no_path(visitor, space, jpeg, photo) -> None:
    page = visitor()
    stream = io.BytesIO()
    photo.resize((40, 30)).save(stream, "PNG")
    for name, data, sentence in (
        ("notes.jpg", b"hello", "notes.jpg: not a JPEG: it starts with 68 65 6c 6c, a JPEG with ff d8 ff."),
        ("empty.jpg", b"", "empty.jpg: the file is empty."),
        ("cut.jpg", jpeg[:900], "cut.jpg: truncated"),
        ("chelsea.jpg", stream.getvalue(), "chelsea.jpg is a PNG picture"),
        ("large.jpg", jpeg_bytes(photo.resize((600, 500)), quality=5), "the limit of this server is 0.25 megapixels."),
    ):
        choose(page, data, name)
        page.locator(".refusal").get_by_text(sentence).wait_for()
        press(page, "Restore")
        page.get_by_test_id("toast-body").get_by_text(sentence).wait_for()
        page.get_by_test_id("toast-close").click()
        page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
        page.get_by_role("button", name="Remove Image").click()
        page.locator(".hint").wait_for()
    choose(page, jpeg + bytes(400_000), "heavy.jpg")
    page.get_by_text(re.compile("maximum allowed size of 0.3 MB|maximum allowed size of 293")).wait_for()
    shown = page.locator("body").inner_text()
    assert str(space.uploads) not in shown
    assert str(ROOT) not in page.content()
    assert "Traceback" not in shown


@browser_test
def test_visitors_work_side_by_side_wait_their_turn_and_stop_when_they_wish(
    visitor, space, photo, jpeg, prior_folder, tmp_path
) -> None:
    large = jpeg_bytes(photo.resize((500, 400)), quality=10)
    long = "?num_samples=16&num_inference_steps=60&init_timestep=300"

    def working(page: Any) -> Any:
        return page.get_by_role("progressbar", name=re.compile(r"Step \d+ of 60, sample \d+ of 16, .* left"))

    def stopped() -> int:
        log = space.log.read_text()
        return sum(done != total for done, total in re.findall(r"(\d+) of (\d+) calls of the prior", log))

    # One is at work for long; another, with other settings, gets meanwhile what they would get alone.
    first, second, third = visitor(long), visitor("?seed=9"), visitor()
    choose(first, large)
    press(first, "Restore")
    working(first).wait_for()
    choose(second, jpeg)
    press(second, "Restore")
    _, data = downloaded(second)
    assert working(first).is_visible()
    (tmp_path / "chelsea.jpg").write_bytes(jpeg)
    pipe = DDRMJPEGPipeline.from_prior(prior_folder)
    restore_file(pipe, Task(tmp_path / "chelsea.jpg", tmp_path / "cat.png"), seed=9, **PRESETS["fast"])
    assert data == (tmp_path / "cat.png").read_bytes()

    # When two are at work, a third is told how many there may be.
    second.goto(f"{space.url}/{long}")
    choose(second, large)
    press(second, "Restore")
    working(second).wait_for()
    choose(third, jpeg)
    press(third, "Restore")
    third.get_by_text("the limit of this server is 2").wait_for()

    # Cancelling ends the calls of the prior, and so does closing the page.
    assert stopped() == 0
    press(first, "Cancel")
    first.get_by_text("Cancelled.").wait_for()
    wait_for(lambda: stopped() == 1)
    second.context.close()
    wait_for(lambda: stopped() == 2)
    press(third, "Restore")
    downloaded(third)


@browser_test
def test_the_address_holds_the_settings(visitor) -> None:
    page = visitor("?preset=best&seed=7")
    wait_for(lambda: page.get_by_label("best").is_checked())
    press(page, "Settings ▼")
    assert page.get_by_role("spinbutton", name=re.compile("num_samples")).input_value() == "8"
    assert page.get_by_label("seed").input_value() == "7"
    page.get_by_label("nearest").check()
    page.wait_for_url(re.compile("correction=nearest"))
    assert "num_samples=8" in page.url
    assert "seed=7" in page.url
    page.get_by_label("paper (S)").check()
    page.wait_for_url(re.compile(r"\?preset=paper&seed=7$"))
    page = visitor("?eta=7&preset=worst&consistent=maybe")
    for name in ("eta", "preset", "consistent"):
        page.get_by_text(re.compile(f"The address .* {name} .*")).wait_for()


@browser_test
def test_the_meter_counts_steps_and_samples_and_ends_what_takes_too_long(
    monkeypatch, jpeg, prior_folder, tmp_path
) -> None:
    import gradio

    monkeypatch.syspath_prepend(SPACE)
    import compute

    monkeypatch.setattr(compute, "PIPE", DDRMJPEGPipeline.from_prior(prior_folder))
    go = tmp_path / "go"
    go.touch()
    said = []
    settings = {"num_samples": 2, "num_inference_steps": 3, "init_timestep": 60}
    arguments = (jpeg, None, settings, 0, go, lambda progress, desc, unit: said.append((progress, desc)))
    compute.run(*arguments)
    places = [re.match(r"Step (\d) of 3, sample (\d) of 2, \d+ s left", desc) for _, desc in said[1:]]
    assert [place.groups() for place in places] == [(step, sample) for step in "123" for sample in "12"]
    assert [progress for progress, _ in said] == [(done, 6) for done in range(7)]

    calls = []
    monkeypatch.setattr(compute, "MAX_SECONDS", 1e-6)
    compute.PIPE.unet.register_forward_hook(lambda *_: calls.append(torch.get_num_threads()))
    with pytest.raises(gradio.Error, match=r"limit of this server is 1e-06 s"):
        compute.run(*arguments)
    assert len(calls) == 1
