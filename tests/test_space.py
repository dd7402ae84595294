"""The web page: its files, and, in a real browser, what visitors do with it (`make test-browser`)."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import processes
import pytest
import tomllib
import torch
from conftest import ROOT, jpeg_bytes, save_odd_pictures
from huggingface_hub import SpaceCard
from PIL import Image
from PIL.ImageOps import exif_transpose as upright
from processes import Process

from pipeline_ddrm_jpeg import (
    PRESETS,
    DDRMJPEGPipeline,
    DDRMScheduler,
    JPEGDamageError,
    JPEGFile,
    JPEGFileError,
    PiGDMScheduler,
    Settings,
)
from pipeline_ddrm_jpeg.decoded.opening import Assumed
from pipeline_ddrm_jpeg.files.formats import encode
from pipeline_ddrm_jpeg.files.restoration import restore_file
from pipeline_ddrm_jpeg.files.tasks import Task
from pipeline_ddrm_jpeg.jpeg import markers
from pipeline_ddrm_jpeg.sampling.settings import ABOUT

SPACE = ROOT / "space"
SECONDS = 1000  # milliseconds, as Playwright counts
browser_test = pytest.mark.browser


def test_the_front_matter_names_what_is_installed_and_what_is_there() -> None:
    card = SpaceCard.load(SPACE / "README.md").data
    assert card.sdk == "gradio"
    assert f"gradio=={card.sdk_version}\n" in (ROOT / "constraints.txt").read_text()
    assert (SPACE / card.app_file).is_file()
    assert len(card.short_description) <= 60  # the Hub refuses a longer one
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (SPACE / "requirements.txt").read_text().splitlines() == [
        *needed["dependencies"],
        *needed["optional-dependencies"]["space"],
    ]


def test_the_examples_are_pictures_and_the_page_names_each() -> None:
    page = (SPACE / "layout.py").read_text()
    for path in (SPACE / "examples").iterdir():
        assert f'"{path.name}"' in page
        with Image.open(path) as picture:
            picture.load()


# --- In the browser ---


@pytest.fixture(scope="module")
def space(prior_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page as `make space` starts it, with a tiny prior and small limits."""
    with serving(tmp_path_factory.mktemp("space"), prior_folder, concurrency=2) as served:
        yield served


@contextmanager
def serving(
    folder: Path, prior_folder: Path, concurrency: int, end: signal.Signals = signal.SIGINT
) -> Iterator[SimpleNamespace]:
    """A server of the page, ended by this signal; afterwards nothing of it is left, unless it was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "DDRM_JPEG_PRIOR": str(prior_folder),
        "DDRM_JPEG_MAX_MEGAPIXELS": "0.25",
        "DDRM_JPEG_MAX_MEGABYTES": "0.3",
        "DDRM_JPEG_MAX_SECONDS": "100000",  # however busy the machine is
        "DDRM_JPEG_MAX_WAITING": "2",
        "DDRM_JPEG_CONCURRENCY": str(concurrency),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "TMPDIR": str(folder / "scratch"),
    }
    (folder / "scratch").mkdir(exist_ok=True)
    log = folder / "log"
    log.write_bytes(b"")
    begin = f"""
import os, sys, tempfile
os.environ |= {environment}
tempfile.tempdir = None  # is found again
for number in (1, 2):
    os.dup2(os.open({str(log)!r}, os.O_WRONLY | os.O_APPEND), number)
sys.stdout.reconfigure(line_buffering=True)
"""
    server = Process(SPACE / "app.py", prelude=begin)
    try:
        wait_for(lambda: "Running on" in log.read_text() or server.poll() is not None, seconds=300)
        assert server.poll() is None, log.read_text()
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}",
            port=port,
            log=log,
            uploads=folder / "uploads",
            scratch=folder / "scratch",
            pid=server.pid,
        )
    finally:
        server.send_signal(end)
        try:
            server.wait(20)
        finally:
            server.kill()
    if end != signal.SIGKILL:
        assert not left_behind(folder)
    assert "Traceback" not in log.read_text(), log.read_text()


def left_behind(folder: Path) -> list[Path]:
    """The folders that servers have here."""
    return [path for place in ("uploads", "scratch") for path in (folder / place).glob("*ddrm-jpeg-*")]


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
        # From here on the address has been read, which would overwrite what is typed.
        page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def jpeg(photo: Image.Image) -> bytes:
    """A small image stored on its side, with EXIF data."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a cat"
    return jpeg_bytes(photo.resize((112, 84)), quality=12, exif=exif)


def choose(page: Any, data: bytes, name: str = "chelsea.jpg", kind: str = "image/jpeg") -> None:
    """Upload a file of what the browser takes for this kind; one that the page does not take is chosen, and no more."""
    page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": kind, "buffer": data})
    if len(data) <= 300_000:
        page.get_by_role("button", name="Remove Image").wait_for()


def said_of(page: Any, heading: str) -> str:
    """What the page says of a file, once this heading is there; it is folded."""
    page.locator("#facts h2").get_by_text(heading).wait_for()
    return page.locator("#facts").text_content()


def choose_another(page: Any, data: bytes, name: str = "chelsea.jpg") -> None:
    page.get_by_role("button", name="Remove Image").click()
    page.get_by_role("button", name="Remove Image").wait_for(state="detached")
    page.locator(".hint").wait_for()
    choose(page, data, name)


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def focused(page: Any) -> str:
    """What that is called which has the keyboard."""
    return page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")


def open_settings(page: Any) -> None:
    """Show the settings. Some frames later gradio writes their values once more, over what is typed in between."""
    press(page, "Settings ▼")
    page.get_by_label("seed").wait_for()
    page.evaluate("""() => new Promise(done => {
      const wait = frames => frames ? requestAnimationFrame(() => wait(frames - 1)) : setTimeout(done, 100);
      wait(3);
    })""")


def downloaded(page: Any) -> tuple[str, bytes]:
    page.locator(".compare img.right").wait_for()
    with page.expect_download() as download:
        press(page, "Download")
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
    for text in ("112 \N{MULTIPLICATION SIGN} 84", "12", "YCbCr 4:2:0", "baseline", "EXIF"):  # as stored
        assert text in said_of(page, "What chelsea.jpg says")
    name, data = downloaded(page)
    assert name == "chelsea_restored.png"
    (tmp_path / "chelsea.jpg").write_bytes(jpeg)

    pipe = DDRMJPEGPipeline.from_prior(prior_folder)
    settings = PRESETS["balanced"] | {"num_samples": 2, "num_inference_steps": 3}
    kept = restore_file(
        pipe, Task(tmp_path / "chelsea.jpg", tmp_path / "expected.png"), seed=5, settings=settings
    ).consistency
    assert data == (tmp_path / "expected.png").read_bytes()
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert data == (tmp_path / name).read_bytes()

    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (84, 112)
        assert picture.getexif()[0x010E] == "a cat"
    assert "Agrees with the file: " in page.locator(".verdict").inner_text()
    shown = float(page.locator(".verdict strong").inner_text().split()[0])
    assert 100 * kept - 0.01 <= shown <= 100 * kept
    # Both sides of the divider have been loaded as they are, and the map over one of them.
    images = page.locator(".compare img")
    assert images.count() == 3
    for image in images.all():
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [84, 112]
    assert not images.last.is_visible()
    page.get_by_label("how sure").check()
    assert images.last.is_visible()
    assert "grey levels" in page.locator("#deviation").inner_text()

    # Other formats have the same pixels, and the same in 16 bits is what the command writes.
    links = {link.inner_text(): link.get_attribute("href") for link in page.locator(".formats a").all()}
    assert list(links) == ["WebP", "TIFF", "PNG of 16 bits"]
    made = {kind: page.request.get(f"{page.url.partition('?')[0]}{href}").body() for kind, href in links.items()}
    for kind in ("WebP", "TIFF"):
        with Image.open(io.BytesIO(made[kind])) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(data))))
    task = Task(tmp_path / "chelsea.jpg", tmp_path / "deep.png")
    restore_file(pipe, task, seed=5, depth=16, settings=settings)
    assert made["PNG of 16 bits"] == (tmp_path / "deep.png").read_bytes()

    # What is set now is not what the result was made with, until it is again.
    page.get_by_label("Best").check()
    note = page.locator("#stale").get_by_text("This result is of other settings.")
    note.wait_for()
    page.goto(f"{page.url.partition('?')[0]}?preset=fast")
    choose(page, jpeg)
    downloaded(page)
    for preset, shown in (("Best", True), ("Fast", False)):
        page.get_by_label(preset).check()
        page.locator("#stale").get_by_text("This result is of another preset.").wait_for(
            state="visible" if shown else "hidden"
        )


def divided_at(page: Any) -> list[float]:
    """Where the divider is seen, and where the images are divided, from the left of the window."""
    return page.locator(".compare").first.evaluate("""compare => {
      const [frame, pair] = [".frame", ".pair"].map(one => compare.querySelector(one));
      const at = [frame.getBoundingClientRect(), pair.getBoundingClientRect()];
      const share = ["--line", "--at"].map((name, i) => parseFloat([frame, pair][i].style.getPropertyValue(name)));
      return at.map(({left, width}, i) => left + width * share[i] / 100);
    }""")


@browser_test
def test_divider_and_zoom_obey_keys_and_mouse(visitor, jpeg, photo) -> None:
    page = visitor(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    choose(page, jpeg)
    pair, after = page.locator(".compare .pair"), page.locator(".compare img.right")
    stage = page.locator(".compare .stage")
    downloaded(page)
    # All of a portrait is seen at once.
    assert stage.evaluate("stage => stage.scrollWidth <= stage.clientWidth && stage.scrollHeight <= stage.clientHeight")
    assert stage.bounding_box()["height"] <= 0.75 * 900
    divider = page.get_by_role("slider", name="Divider between before and after")
    divider.focus()
    page.keyboard.press("End")
    assert after.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 100%)"
    page.keyboard.press("Home")
    assert after.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 0%)"
    page.get_by_role("radio", name="fit").focus()
    page.keyboard.press("ArrowRight")
    assert pair.evaluate("pair => pair.offsetWidth") == 84
    page.get_by_role("radio", name=re.compile("^4")).check()
    assert pair.evaluate("pair => pair.offsetWidth") == 4 * 84
    page.get_by_role("radio", name="1:1").check()
    divider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    seen, divided = divided_at(page)
    assert abs(seen - divided) < 1

    # Before is seen as long as a button is held.
    button = page.get_by_role("button", name="Hold to see before")
    visible = "image => getComputedStyle(image).visibility"
    button.focus()
    page.keyboard.down("Space")
    assert after.evaluate(visible) == "hidden"
    page.keyboard.up("Space")
    assert after.evaluate(visible) == "visible"

    # Side by side, both halves show the same of their pictures.
    page.get_by_label("side by side").check()
    page.get_by_role("radio", name=re.compile("^4")).check()
    stage.evaluate("stage => stage.scrollTo(30, 0)")
    half = stage.evaluate("stage => stage.clientWidth / 2")
    before = page.locator(".compare img.left0")
    assert after.bounding_box()["x"] == pytest.approx(before.bounding_box()["x"] + half, abs=1)
    page.get_by_label("side by side").uncheck()
    for leave in ("Enter", "Escape"):
        page.get_by_role("button", name="Full screen", exact=True).focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Leave full screen").wait_for()
        assert page.evaluate("document.fullscreenElement.matches('.compare')")
        page.keyboard.press(leave)
        page.get_by_role("button", name="Full screen", exact=True).wait_for()
        assert focused(page) == "Full screen"

    # What is magnified is moved by mouse and keys below the divider.
    choose_another(page, jpeg_bytes(photo.resize((300, 280)), quality=12))
    downloaded(page)
    box = stage.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def scrolled() -> list[int]:
        return stage.evaluate("stage => [Math.round(stage.scrollLeft), Math.round(stage.scrollTop)]")

    # What fits is not moved: there the mouse takes the divider along, wherever it is pressed.
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle[1])
    page.mouse.up()
    assert scrolled() == [0, 0]
    assert abs(divided_at(page)[0] - box["x"] - box["width"] / 4) < 3

    page.get_by_role("radio", name=re.compile("^4")).check()
    stage.scroll_into_view_if_needed()
    left, top = scrolled()
    assert left > 0  # what was in the middle has stayed there
    assert top > 0
    box = stage.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 60, middle[1] - 40)
    page.mouse.up()
    assert scrolled() == [left + 60, top + 40]
    seen, divided = divided_at(page)
    assert abs(seen - divided) < 1
    page.keyboard.press("ArrowRight")
    wait_for(lambda: scrolled()[0] > left + 60)
    page.mouse.dblclick(*middle)
    assert page.get_by_role("radio", name="fit").is_checked()
    page.mouse.dblclick(*middle)
    assert stage.evaluate("stage => stage.scrollWidth / stage.clientWidth") == pytest.approx(2, abs=0.1)


@browser_test
def test_one_finger_moves_the_picture_and_two_magnify_it(visitor, photo) -> None:
    page = visitor(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box = page.get_by_role("button", name="Restore", exact=True).bounding_box()
    assert 0 < box["y"] < 844 - box["height"]  # seen without scrolling
    assert page.get_by_role("tab", name="Dequantize").is_visible()
    choose(page, b"hello")
    refusal = page.locator("#facts .refusal")
    refusal.wait_for()
    bar = page.locator("#actions").bounding_box()["y"]
    wait_for(lambda: refusal.bounding_box()["y"] + refusal.bounding_box()["height"] <= bar)
    page.get_by_role("button", name="Remove Image").click()
    page.get_by_role("button", name="Remove Image").wait_for(state="detached")
    choose(page, jpeg_bytes(photo.resize((300, 280)), quality=12))
    downloaded(page)
    stage = page.locator(".compare .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    touch("Start", (x, y), (x + 50, y))
    for apart in range(50, 160, 10):
        touch("Move", (x, y), (x + apart, y))
    touch("End")
    assert stage.evaluate("stage => stage.scrollWidth / stage.clientWidth") == pytest.approx(3, abs=0.2)
    before = stage.evaluate("stage => stage.scrollLeft")
    touch("Start", (x + 100, y))
    for step in range(10):
        touch("Move", (x + 100 - 8 * step, y))
    touch("End")
    wait_for(lambda: stage.evaluate("stage => stage.scrollLeft") > before + 30)
    seen, divided = divided_at(page)
    assert abs(seen - divided) < 1
    assert page.evaluate("visualViewport.scale") == 1  # the page itself has not been magnified
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # The handle is taken by a finger, too.
    page.get_by_role("radio", name="fit").check()
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    handle, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch("Start", (handle, y))
    for step in range(10):
        touch("Move", (handle + 10 * step, y))
    touch("End")
    wait_for(lambda: divided_at(page)[0] > handle + 50)


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
    found, data = downloaded(page)
    assert found == name
    table = page.locator(".numbers").inner_text()
    assert len(re.findall(r"\d+\.\d\d dB", table)) == len(re.findall(r"0\.\d{4}", table)) == 2
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert data == (tmp_path / name).read_bytes()
    page.get_by_label("original", exact=True).check()
    assert page.locator(".compare img[alt=original]").is_visible()


@browser_test
def test_what_cannot_be_restored_is_told_in_one_sentence_that_names_no_path(visitor, space, jpeg, photo) -> None:
    page = visitor()
    stream = io.BytesIO()
    photo.resize((40, 30)).save(stream, "PNG")
    for name, data, sentence in (
        ("notes.jpg", b"hello", "notes.jpg: not a JPEG but text; give a JPEG file."),
        ("empty.jpg", b"", "empty.jpg: the file is empty."),
        (
            "phone.heic",
            b"\0\0\0\x18ftypheic" + bytes(50),
            "phone.heic is a HEIC image, which is not read here; convert",
        ),
        ("cut.jpg", jpeg[:900], "cut.jpg: truncated"),
        ("chelsea.jpg", stream.getvalue(), "chelsea.jpg: its pixels show no JPEG that it went through."),
        ("large.jpg", jpeg_bytes(photo.resize((600, 500)), quality=5), "the limit of this server is 0.25 megapixels."),
    ):
        choose(page, data, name, "application/octet-stream" if name == "phone.heic" else "image/jpeg")
        page.locator("#facts .refusal").get_by_text(sentence).wait_for()
        if name == "notes.jpg":  # nothing of this has begun, and who begins it all the same is told
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
    working(first).wait_for()
    choose(second, jpeg)
    _, data = downloaded(second)
    assert working(first).is_visible()
    (tmp_path / "chelsea.jpg").write_bytes(jpeg)
    pipe = DDRMJPEGPipeline.from_prior(prior_folder)
    restore_file(pipe, Task(tmp_path / "chelsea.jpg", tmp_path / "cat.png"), seed=9)
    assert data == (tmp_path / "cat.png").read_bytes()

    # When two are at work, a third is told how many there may be.
    second.goto(f"{space.url}/{long}")
    choose(second, large)
    working(second).wait_for()
    choose(third, jpeg)
    third.locator(".refusal").get_by_text("the limit of this server is 2").wait_for()

    # Cancelling ends the calls of the prior, and so does closing the page.
    assert stopped() == 0
    press(first, "Cancel")
    first.locator("#status").get_by_text("Cancelled.").wait_for()
    wait_for(lambda: stopped() == 1)
    second.context.close()
    wait_for(lambda: stopped() == 2)
    press(third, "Restore")
    downloaded(third)


@browser_test
def test_those_who_wait_are_told_so_where_they_look(chromium, photo, prior_folder, tmp_path) -> None:
    with serving(tmp_path, prior_folder, concurrency=1, end=signal.SIGTERM) as space:
        pages = [chromium.new_context(viewport={"width": width, "height": 844}).new_page() for width in (1280, 390)]
        for page in pages:
            page.goto(f"{space.url}/?num_samples=16&num_inference_steps=60&init_timestep=300")
            page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
            choose(page, jpeg_bytes(photo.resize((500, 400)), quality=10))
            waits = page is pages[1]
            text = page.locator("#status .progress-text" if waits else "#status .progress p")
            text.get_by_text("queue: 1/1" if waits else re.compile("left$")).wait_for()
            if waits:
                said = text.evaluate("text => getComputedStyle(text, '::before').content")
                assert said == '"Waiting for its turn.\u00a0"'
            box = text.bounding_box()
            assert 0 <= box["y"] <= 844 - box["height"]
            seen = page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('#status') !== null", [
                box["x"] + box["width"] / 2, box["y"] + box["height"] / 2,
            ])  # fmt: skip
            assert seen
        for page in pages:
            page.context.close()


@browser_test
def test_cancel_ends_in_cancelled(visitor, space, photo) -> None:
    page = visitor("?num_samples=16&num_inference_steps=60&init_timestep=300")
    choose(page, jpeg_bytes(photo.resize((500, 400)), quality=10))
    said = page.locator("#status p")
    for attempt in range(4):
        if attempt:
            page.get_by_role("button", name="Restore", exact=True).focus()
            page.keyboard.press("Enter")
            wait_for(lambda: focused(page) == "Cancel")  # what has the keyboard hands it on
            page.locator(".aloud").get_by_text("Restoring.").wait_for()
        if attempt % 2:  # the others are cancelled as soon as there is a button for it
            page.get_by_role("progressbar", name=re.compile("Step 1 of 60")).wait_for()
        with page.expect_response("**/reset"):  # the last word of gradio's own cancelling
            page.keyboard.press("Enter") if attempt else press(page, "Cancel")
        page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
        assert not attempt or focused(page) == "Restore"
        page.locator(".aloud").get_by_text("Cancelled.").wait_for()
        wait_for(lambda: idle(space))
        page.get_by_role("tab", name="Explore").click()  # answered after whatever came before
        page.get_by_role("button", name="Compress, then restore").wait_for()
        assert said.all_inner_texts() == ["Cancelled."]
        page.get_by_role("tab", name="Restore").click()
        page.get_by_role("button", name="Restore", exact=True).wait_for()


@browser_test
def test_an_emptied_seed_is_asked_for(visitor, jpeg) -> None:
    page = visitor()
    choose(page, jpeg)
    downloaded(page)
    open_settings(page)
    page.get_by_label("seed").fill("")
    page.wait_for_url(lambda url: "preset=" in url and "seed" not in url)
    press(page, "Restore")
    page.locator(".refusal").get_by_text("seed is empty; it must be a whole number from 0 to").wait_for()
    page.get_by_label("seed").fill("3")
    page.get_by_test_id("toast-close").click()
    press(page, "Restore")
    downloaded(page)


@browser_test
def test_before_anything_is_uploaded_a_finished_example_is_there_and_four_to_press(visitor, space) -> None:
    page = visitor(locale="de-DE")
    assert page.evaluate("document.documentElement.lang") == "en"
    page.locator(".compare img.right").wait_for()
    for image in page.locator(".compare img").all():
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [341, 256]
    assert "Agrees with the file: " in page.locator("#status").inner_text()
    assert "What cat.jpg says" in page.locator("#facts").inner_text()
    presets = page.locator("#preset label").all_inner_texts()
    for name, text in zip(("Fast", "Balanced", "Best"), presets, strict=True):
        assert re.fullmatch(rf"{name}: .*", text.strip())
    source = page.get_by_role("link", name="Source").get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(page.request.get(f"{space.url}/{source}").body())) as archive:
        assert {"space/app.py", "pipeline_ddrm_jpeg/pipeline.py"} < set(archive.namelist())

    # The mark of the chosen preset stays under the pointer, and arrow keys move it, which is seen.
    chosen = page.locator("#preset input:checked")
    colour = "input => getComputedStyle(input).backgroundColor"
    marked = chosen.evaluate(colour)
    chosen.hover()
    assert chosen.evaluate(colour) == marked
    chosen.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("preset=best"))
    assert (
        page.locator("#preset label:has(:focus-visible)").evaluate("label => getComputedStyle(label).outlineStyle")
        == "solid"
    )
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("preset=balanced"))

    examples = page.get_by_role("tabpanel").locator(".examples button")
    assert examples.count() == 4
    for number in range(2):
        name = examples.nth(number).locator("img").get_attribute("src").rpartition("/")[2]
        examples.nth(number).click()
        page.locator(".example").wait_for(state="detached")  # nothing is left of what was shown before
        page.locator("#facts h2").get_by_text(f"What {name} says").wait_for()


@browser_test
def test_another_picture_ends_the_work_on_the_last_and_clears_its_result(visitor, space, jpeg, photo) -> None:
    page = visitor("?num_samples=16&num_inference_steps=60&init_timestep=300")
    choose(page, jpeg_bytes(photo.resize((500, 400)), quality=10))
    page.get_by_role("progressbar", name=re.compile("left$")).wait_for()
    page.get_by_role("button", name="Remove Image").click()
    page.locator(".hint").wait_for()
    wait_for(lambda: idle(space))
    page.goto(space.url)
    choose(page, jpeg)
    downloaded(page)
    page.get_by_role("button", name="Remove Image").focus()
    page.keyboard.press("Enter")
    page.locator(".hint").wait_for()
    assert not page.locator(".compare, .verdict").count()
    wait_for(lambda: focused(page) == "Drop an image file here to upload")


TRANSFER = """([kind, place, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(data)], `${kind}.jpg`, {type: "image/jpeg"}));
  const event = kind === "drop"
    ? new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true})
    : new ClipboardEvent(kind, {clipboardData: transfer, bubbles: true, cancelable: true});
  document.querySelector(place).dispatchEvent(event);
  return event.defaultPrevented;
}"""


@browser_test
def test_an_image_comes_from_everywhere_and_one_that_is_not_shown_leaves_no_broken_sign(visitor, jpeg, space) -> None:
    page = visitor("?preset=fast")
    for kind, place in (("drop", "#view"), ("paste", "body")):
        assert page.evaluate(TRANSFER, [kind, place, list(jpeg)])
        page.locator("#facts h2").get_by_text(f"What {kind}.jpg says").wait_for()
    assert page.locator(".upload img").get_attribute("alt") == "The chosen image"

    # An address is the browser's to fetch.
    free = {"Access-Control-Allow-Origin": "*"}
    page.route(
        "https://pictures.example/*.jpg", lambda one: one.fulfill(body=jpeg, content_type="image/jpeg", headers=free)
    )
    page.route(
        "https://pictures.example/page", lambda one: one.fulfill(body="<p>", content_type="text/html", headers=free)
    )
    for address, sentence in (
        ("https://pictures.example/page", "There is no image at that address"),
        ("cat.jpg", "The address of an image begins with https://."),
        ("https://closed.invalid/a.jpg", "Your browser may not fetch that image for this page."),
    ):
        page.locator("#address :is(input, textarea)").fill(address)
        page.keyboard.press("Enter")
        page.locator("#said").get_by_text(sentence).wait_for()
    page.locator("#address :is(input, textarea)").fill("https://pictures.example/one%20cat.jpg")
    page.keyboard.press("Enter")
    page.locator("#facts h2").get_by_text("What one cat.jpg says").wait_for()
    assert "pictures.example" not in space.log.read_text()

    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(stream, "TIFF")
    choose_another(page, stream.getvalue(), "scan.tif")
    unseen = page.locator(".upload img.unseen")
    unseen.wait_for(state="attached")
    assert not unseen.is_visible()


class Wire:
    """A connection to the server that can be cut."""

    def __init__(self, port: int) -> None:
        self.to, self.ends, self.down = port, [], False
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.door.accept()
                if self.down:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.to))
                self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self.down, ends, self.ends = True, self.ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@browser_test
def test_a_result_survives_a_connection_that_is_lost_for_seconds(space, chromium, jpeg) -> None:
    wire = Wire(space.port)
    page = chromium.new_context().new_page()
    page.set_default_timeout(90 * SECONDS)
    page.goto(f"http://127.0.0.1:{wire.port}/?num_samples=4&num_inference_steps=40&init_timestep=300")
    page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
    choose(page, jpeg)
    page.get_by_role("progressbar", name=re.compile("left$")).wait_for()
    wire.cut()
    page.wait_for_timeout(3 * SECONDS)
    wire.down = False
    downloaded(page)
    assert not page.get_by_test_id("toast-body").count()
    wire.door.close()
    page.context.close()


def hold_the_first(page: Any, listeners: set[int] | None = None) -> list:
    """The first call of a listener, one of those or any, once it has come, to be continued later."""
    held = []

    def handle(route: Any) -> None:
        if held or (listeners is not None and route.request.post_data_json["fn_index"] not in listeners):
            route.continue_()
        else:
            held.append(route)

    page.route("**/queue/join*", handle)
    return held


@browser_test
def test_nothing_can_be_set_before_the_address_was_read(space, chromium) -> None:
    context = chromium.new_context()
    page = context.new_page()
    held = hold_the_first(page)
    with page.expect_request("**/queue/join*"):
        page.goto(f"{space.url}/?sharpness=0.5&seed=4")
    sharpness, seed = page.get_by_label(re.compile("^number input for Sharpness")), page.get_by_label("seed")
    open_settings(page)
    for control in (sharpness, seed, page.get_by_label("Best"), page.get_by_role("button", name="Restore", exact=True)):
        assert control.is_disabled()
    held[0].continue_()
    page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
    assert seed.is_enabled()
    assert (sharpness.input_value(), seed.input_value()) == ("0.5", "4")
    context.close()


@browser_test
def test_a_late_answer_about_an_upload_hides_no_refusal(visitor, jpeg) -> None:
    page = visitor()
    answers = {one["id"] for one in page.evaluate("gradio_config.dependencies") if "inspect" in one["api_name"]}
    held = hold_the_first(page, answers)
    with page.expect_request(lambda one: "/queue/join" in one.url and one.post_data_json["fn_index"] in answers):
        choose(page, jpeg)
    open_settings(page)
    page.get_by_label("seed").fill("")
    press(page, "Restore")
    refused = page.locator(".refusal").get_by_text("seed is empty")
    refused.wait_for()
    held[0].continue_()
    page.wait_for_timeout(1 * SECONDS)
    assert refused.is_visible()


@browser_test
def test_a_cut_file_is_repaired_on_the_page(visitor, photo, prior_folder, tmp_path, monkeypatch) -> None:
    data = jpeg_bytes(photo.resize((112, 84)), quality=12)
    cut = data[: len(data) * 2 // 3]
    page = visitor("?num_samples=1&num_inference_steps=3")
    repair = page.get_by_label("repair")
    choose(page, data, "whole.jpg")
    page.locator("#facts h2").get_by_text("whole.jpg").wait_for()
    assert not repair.is_visible()
    page.get_by_role("button", name="Remove Image").click()
    page.locator(".hint").wait_for()
    choose(page, cut, "cut.jpg")
    page.locator(".refusal").get_by_text("Tick repair to restore what is left of it.").wait_for()
    repair.check()
    page.locator("#facts h2").get_by_text("cut.jpg").wait_for()
    assert not page.locator(".refusal").count()
    name, restored = downloaded(page)
    told = page.locator(".verdict").inner_text()
    assert re.search(r"Agrees with what is left of the file: .*\d % of it were lost, and are made up", told)
    page.get_by_label("what is made up").check()
    mask = page.locator(".compare img.left1")
    assert mask.is_visible()
    (tmp_path / "cut.jpg").write_bytes(cut)
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert restored == (tmp_path / name).read_bytes()
    shown = io.BytesIO(page.request.get(mask.evaluate("image => image.src")).body())
    with Image.open(shown) as shown, Image.open(tmp_path / "cut_restored.mask.png") as written:
        assert np.array_equal(np.asarray(shown), np.asarray(written))


def png_bytes(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@browser_test
def test_a_picture_whose_file_is_gone_is_restored_as_its_pixels_show(
    visitor, photo, prior_folder, tmp_path, monkeypatch
) -> None:
    decoded = Image.open(io.BytesIO(jpeg_bytes(photo.crop((100, 50, 300, 250)), quality=20)))
    shot = decoded.crop((3, 5, 200, 200))
    shot.putalpha(Image.linear_gradient("L").resize(shot.size))
    (tmp_path / "shot.png").write_bytes(png_bytes(shot))
    page = visitor("?num_samples=1&num_inference_steps=3&seed=2")
    quality = page.get_by_label(re.compile("^number input for Quality factor of its JPEG"))
    assert not quality.is_visible()
    choose(page, (tmp_path / "shot.png").read_bytes(), "shot.png")
    for text in ("about 20", "5 rows, 3 columns", "Blocks explained exactly"):
        assert text in said_of(page, "What the pixels of shot.png show")
    assert quality.is_visible()
    name, data = downloaded(page)
    assert "Agrees with the JPEG that its pixels show" in page.locator(".verdict").inner_text()
    page.locator(".compare").get_by_text("as it is").wait_for()
    settings = PRESETS["balanced"] | {"num_samples": 1, "num_inference_steps": 3}
    task = Task(tmp_path / "shot.png", tmp_path / "expected.png")
    restore_file(DDRMJPEGPipeline.from_prior(prior_folder), task, seed=2, settings=settings)
    assert data == (tmp_path / "expected.png").read_bytes()
    assert Image.open(io.BytesIO(data)).getchannel("A").tobytes() == shot.getchannel("A").tobytes()
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert data == (tmp_path / name).read_bytes()


@browser_test
def test_a_real_screenshot_is_restored_where_the_jpeg_is(visitor, chromium, photo) -> None:
    jpeg = base64.b64encode(jpeg_bytes(photo.crop((0, 0, 230, 210)), quality=30)).decode()
    shown = chromium.new_page(viewport={"width": 560, "height": 440})
    shown.set_content(
        f'<body style="margin:0"><p>{"What the page says beside the picture. " * 90}</p>'
        f'<img src="data:image/jpeg;base64,{jpeg}" style="position:absolute; left:217px; top:121px">'
    )
    shown.wait_for_function("document.images[0].complete")
    data = shown.screenshot()
    shown.close()
    page = visitor("?num_samples=1&num_inference_steps=3")
    choose(page, data, "page.png")
    for text in ("about 30", "230 \N{MULTIPLICATION SIGN} 210 from column 217, row 121"):
        assert text in said_of(page, "What the pixels of page.png show")
    before, after = (np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in (data, downloaded(page)[1]))
    changed = (before != after).any(axis=2)
    assert changed[121 : 121 + 210, 217 : 217 + 230].mean() > 0.5
    changed[121 : 121 + 210, 217 : 217 + 230] = False
    assert not changed.any()


@browser_test
def test_where_pixels_show_nothing_somebody_may_say_what_the_jpeg_was(
    visitor, photo, prior_folder, tmp_path, monkeypatch
) -> None:
    (tmp_path / "frame.png").write_bytes(png_bytes(photo.resize((112, 84))))
    page = visitor("?num_samples=1&num_inference_steps=3")
    choose(page, (tmp_path / "frame.png").read_bytes(), "frame.png")
    page.locator(".refusal").get_by_text("say the quality factor of its JPEG").wait_for()
    quality = page.get_by_label(re.compile("^number input for Quality factor of its JPEG"))
    quality.fill("30")
    quality.press("Tab")
    page.locator("#facts h2").get_by_text("What you say frame.png was").wait_for()
    page.get_by_role("radio", name="4:4:4").first.check()
    page.locator("#facts").get_by_text("YCbCr 4:4:4").wait_for(state="attached")
    press(page, "Restore")
    name, data = downloaded(page)
    assert "Agrees with the JPEG that you say it was" in page.locator(".verdict").inner_text()
    settings = PRESETS["balanced"] | {"num_samples": 1, "num_inference_steps": 3}
    task, assumed = Task(tmp_path / "frame.png", tmp_path / "expected.png"), Assumed(30, "4:4:4")
    restore_file(DDRMJPEGPipeline.from_prior(prior_folder), task, assumed=assumed, settings=settings)
    assert data == (tmp_path / "expected.png").read_bytes()
    run_snippet(page, tmp_path, prior_folder, monkeypatch)
    assert data == (tmp_path / name).read_bytes()


@browser_test
def test_a_jpeg_saved_again_is_offered_as_the_one_it_was(visitor, photo) -> None:
    first = Image.open(io.BytesIO(jpeg_bytes(photo.crop((100, 50, 350, 250)), quality=15)))
    page = visitor("?num_samples=1&num_inference_steps=3")
    earlier = page.get_by_label("the earlier JPEG")
    once, again = jpeg_bytes(first, quality=20), jpeg_bytes(first.crop((3, 5, 250, 200)), quality=94)
    choose(page, once, "once.jpg")
    page.locator("#facts h2").get_by_text("What once.jpg says").wait_for()
    assert not earlier.is_visible()
    page.get_by_role("button", name="Remove Image").click()
    page.locator(".hint").wait_for()
    choose(page, again, "again.jpg")
    assert "double compression, first as a JPEG of about quality 15" in said_of(page, "What again.jpg says")
    earlier.check()
    page.locator("#facts h2").get_by_text("What the pixels of again.jpg show").wait_for()
    page.locator(".verdict").get_by_text("Agrees with the JPEG that its pixels show").wait_for()
    assert "%" in page.locator(".verdict").inner_text()
    for number in (1, 2):  # what was ticked for one file is not for the next, and not when it comes again
        page.get_by_role("button", name="Remove Image").click()
        page.locator(".hint").wait_for()
        choose(page, again if number == 2 else once, "next.jpg")
        page.locator("#facts h2").get_by_text("What next.jpg says").wait_for()
        assert earlier.is_visible() == (number == 2)
    assert not earlier.is_checked()


@browser_test
def test_the_picture_so_far_is_seen_until_it_is_done_or_cancelled(visitor, photo) -> None:
    data = jpeg_bytes(photo.resize((500, 400)), quality=10)
    page = visitor("?num_samples=16&num_inference_steps=60&init_timestep=300")
    choose(page, data)
    seen = page.locator(".preview img")
    seen.wait_for()
    assert seen.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [500, 400]
    first = seen.get_attribute("src")
    wait_for(lambda: seen.get_attribute("src") != first)
    for _ in range(20):  # meanwhile the page says all the time how far it is, and announces nothing that is there
        assert page.locator("#status").inner_text().strip().endswith("left")
        page.wait_for_timeout(100)
    press(page, "Cancel")
    page.locator("#status").get_by_text("Cancelled.").wait_for()
    assert not seen.count()


@browser_test
def test_four_inks_come_out_as_rgb(visitor, photo) -> None:
    page = visitor()
    choose(page, jpeg_bytes(photo.resize((112, 84)).convert("CMYK"), quality=20), "print.jpg")
    assert "CMYK" in said_of(page, "What print.jpg says")
    assert "Written as RGB" in said_of(page, "What print.jpg says")
    _, data = downloaded(page)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.mode, picture.size) == ("RGB", (112, 84))


@browser_test
def test_several_files_are_restored_as_each_alone(visitor, jpeg, photo, prior_folder, tmp_path) -> None:
    (tmp_path / "chelsea.jpg").write_bytes(jpeg)
    (tmp_path / "grey.jpg").write_bytes(jpeg_bytes(photo.convert("L").resize((64, 64)), quality=20))
    (tmp_path / "notes.jpg").write_text("hello")
    page = visitor("?seed=2")
    page.get_by_role("tab", name="Several").click()
    start = page.get_by_role("button", name="Restore all")
    names = ("chelsea.jpg", "notes.jpg", "grey.jpg")
    page.get_by_role("tabpanel").locator("input[type=file]").set_input_files([tmp_path / name for name in names])
    page.get_by_role("tabpanel").get_by_text("notes").wait_for()
    start.click()
    page.locator(".verdict").get_by_text("2 of 3").wait_for()
    assert page.locator(".compare").count() == 2
    page.locator("#view h2:text('notes.jpg') + .refusal").get_by_text("not a JPEG but text").wait_for()
    with page.expect_download() as download:
        press(page, "Download")
    pipe = DDRMJPEGPipeline.from_prior(prior_folder)
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["chelsea_restored.png", "grey_restored.png"]
        for name in archive.namelist():
            task = Task(tmp_path / name.replace("_restored.png", ".jpg"), tmp_path / name)
            restore_file(pipe, task, seed=2)
            assert archive.read(name) == (tmp_path / name).read_bytes()


@browser_test
def test_the_address_holds_the_settings(visitor) -> None:
    page = visitor("?preset=best&seed=7")
    wait_for(lambda: page.get_by_label("Best").is_checked())
    open_settings(page)
    assert page.get_by_role("spinbutton", name=re.compile("num_samples")).input_value() == "2"
    assert page.get_by_label("seed").input_value() == "7"
    page.get_by_label("nearest").check()
    page.wait_for_url(re.compile("correction=nearest"))
    assert "num_samples=2" in page.url
    assert "seed=7" in page.url
    page.get_by_label("paper (S)").check()
    page.wait_for_url(re.compile(r"\?preset=paper&seed=7$"))
    assert not page.locator("#preset input:checked").count()
    page = visitor("?eta=7&preset=worst&consistent=maybe")
    for name in ("eta", "preset", "consistent"):
        page.get_by_text(re.compile(f"The address .* {name} .*")).wait_for()


@browser_test
def test_the_meter_counts_steps_and_samples_and_ends_what_takes_too_long(
    monkeypatch, jpeg, prior_folder, tmp_path
) -> None:
    import gradio

    monkeypatch.syspath_prepend(SPACE)
    import work

    monkeypatch.setattr(work, "PIPE", DDRMJPEGPipeline.from_prior(prior_folder))
    go = tmp_path / "go"
    go.touch()
    settings = Settings(num_samples=2, num_inference_steps=3, init_timestep=60)
    file = JPEGFile.open(jpeg)
    arguments = (file, None, settings, 0, go)
    monkeypatch.setattr(work, "_BETWEEN_PREVIEWS", -1)
    monkeypatch.setattr(work, "_BETWEEN_WORDS", -1)
    *told, result = work.run(*arguments)
    previews = [one.image for one in told if one.image]
    assert {preview.size for preview in previews} == {(84, 112)}
    assert result.pixels.shape == (84, 112, 3)  # as stored, on its side
    assert len(previews) == settings["num_inference_steps"]  # both samples go through the steps together
    assert all("left" in one.words for one in told if one.image)
    said = [one for one in told if not one.image]
    places = [re.match(r"Step (\d) of 3, sample (\d) of 2, \d+ s left", one.words) for one in said[1:]]
    assert [place.groups() for place in places] == [(step, sample) for step in "123" for sample in "12"]
    assert [one[1:3] for one in said] == [(done, 6) for done in range(7)]

    calls = []
    monkeypatch.setattr(work, "MAX_SECONDS", 1e-6)
    work.PIPE.unet.register_forward_hook(lambda *_: calls.append(torch.get_num_threads()))
    with pytest.raises(gradio.Error, match=r"limit of this server is 1e-06 s"):
        list(work.run(*arguments))
    assert len(calls) == 1

    # Once it is known how fast this server is, the next that would take too long does not begin.
    monkeypatch.setattr(work, "MAX_SECONDS", 1000)
    monkeypatch.setattr(work, "_pace", math.inf)
    size = (112, 84)
    list(work.timed_run(*arguments, size))
    assert len(calls) == 7
    assert 0 < work.estimate(settings, *size) == work.estimate(settings | {"num_samples": 4}, *size) / 2
    monkeypatch.setattr(work, "MAX_SECONDS", work.estimate(settings, *size) / 2)
    with pytest.raises(gradio.Error, match=r"This would take about \d+ s; the limit of this server is"):
        list(work.timed_run(*arguments, size))
    assert len(calls) == 7


ZERO_GPU = """
import math, os, sys, types

space, os.environ["DDRM_JPEG_PRIOR"], picture = sys.argv[1:]
sys.path.insert(0, space)
sys.modules["spaces"] = spaces = types.ModuleType("spaces")
spaces.GPU = lambda duration: lambda work: setattr(spaces, "duration", duration) or work
import work
from PIL import Image
from pipeline_ddrm_jpeg import PRESETS, JPEGFile

for source in (JPEGFile.open(picture), Image.open(picture)):
    for expected in (math.inf, 1e-3, 20, 1000):
        work._pace = expected / work.evaluated_pixels(PRESETS["best"], *work.restored_size(source))
        print(spaces.duration(source, None, PRESETS["best"], 0, None), end=" ")
print(work.MAX_SECONDS)
"""


@browser_test
def test_zerogpu_is_asked_for_about_what_a_restoration_takes(jpeg, prior_folder, tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg)
    done = processes.run(ZERO_GPU, SPACE, prior_folder, tmp_path / "a.jpg")
    assert done.stdout.split() == 2 * ["60", "11", "50", "120"] + ["110"], done.stderr


@browser_test
def test_the_script_makes_the_pictures_of_the_documentation(space, chromium, tmp_path) -> None:
    script = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "screenshots.py")))
    page = chromium.new_page()
    script.take(page, space.url, tmp_path)
    page.close()
    for name, size, _ in script.SCREENS:
        for folder in (tmp_path, ROOT / "docs"):
            with Image.open(folder / f"{name}.webp") as picture:
                assert picture.size == size


# --- What strangers send without a browser ---

SETTINGS = [1, 3, 0, "leading", 1, 1, 1, False, False, "ddrm", 1, True, False, 0, 0]  # from num_samples to seed
LONG = [16, 60, 300, *SETTINGS[3:]]
AS_IT_IS = [False, False, 0, "4:2:0"]  # nothing to repair, and nothing known of an image but its pixels


@pytest.fixture
def stranger(space: SimpleNamespace) -> Iterator[Any]:
    with strange(space) as stranger:
        yield stranger


@contextmanager
def strange(space: SimpleNamespace) -> Iterator[Any]:
    """Speaks to the page's server as a program does."""
    import httpx

    with httpx.Client(base_url=f"{space.url}/gradio_api/", timeout=120) as client:
        yield Stranger(client)


class Stranger:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.config = client.get("../config").json()
        self.listeners = [listener for listener in self.config["dependencies"] if listener["backend_fn"]]
        self.index = {listener["api_name"]: listener["id"] for listener in self.listeners}

    def upload(self, *files: tuple[str, bytes]) -> Any:
        return self.client.post("upload", files=[("files", file) for file in files])

    def join(self, listener: int, data: list, session: str) -> Any:
        return self.client.post("queue/join", json={"fn_index": listener, "data": data, "session_hash": session})

    def call(self, listener: int, data: list) -> tuple[bool, Any]:
        """Whether it succeeded, and its outputs or what it says instead."""
        session = os.urandom(8).hex()
        joined = self.join(listener, data, session)
        if joined.status_code != 200:
            return False, joined.json()["detail"]
        with self.client.stream("GET", "queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") == "process_completed":
                    output = message["output"]
                    return message["success"], output["data"] if message["success"] else output["error"]
        raise AssertionError("the stream ended before the call did")


def idle(space: SimpleNamespace) -> bool:
    """Whether no restoration runs."""
    return not list(space.scratch.glob("ddrm-jpeg-space-*/*"))


def hostile_paths(folder: Path, uploads: Path, photo: Image.Image) -> list[str]:
    """Files of the server's machine that nobody has uploaded, and names that lead to them."""
    photo.resize((40, 30)).save(folder / "secret.png")
    (own,) = uploads.glob("ddrm-jpeg-uploads-*")
    inside = own / "planted"
    inside.mkdir()
    (inside / "link.png").symlink_to(folder / "secret.png")
    (inside / "folder").symlink_to(folder)
    os.mkfifo(inside / "pipe")
    up = "/".join([".."] * len(own.parts))
    return [
        str(folder / "secret.png"),
        f"{own}/{up}{folder}/secret.png",
        str(inside / "link.png"),
        str(inside / "folder" / "secret.png"),
        str(inside / "pipe"),
        str(inside),
        str(own),
        "/dev/zero",
        "/etc/passwd",
        "/not/there",
        "secret.png",
        "",
        "a\0b",
        "x" * 5000,
        "http://127.0.0.1:9/secret.png",
    ]


@browser_test
def test_no_file_is_read_but_an_upload(stranger, space, photo, tmp_path) -> None:
    paths = hostile_paths(tmp_path, space.uploads, photo)
    try:
        for path in paths:
            forms = [{"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}]
            forms += [form | {"url": path, "is_stream": True} for form in forms]
            for form in forms:
                others = {"restore": AS_IT_IS, "explore": [10, "4:2:0", 0], "dequantize": [3, "left", 0], "several": []}
                for listener, rest in others.items():
                    picture = [form] if listener == "several" else form
                    success, said = stranger.call(stranger.index[listener], [picture, *rest, *SETTINGS])
                    assert not success
                    assert "was not uploaded to this server" in said, path
            if path:
                assert stranger.client.get(f"file={quote(path)}").status_code == 404
        # Nor does any other control of any listener take it for what a visitor could have chosen.
        form = {"path": paths[0], "meta": {"_type": "gradio.FileData"}}
        for listener in stranger.listeners:
            for place in range(len(listener["inputs"])):
                data = [None] * len(listener["inputs"])
                data[place] = form
                success, _ = stranger.call(listener["id"], data)
                assert not success
    finally:
        shutil.rmtree(next(space.uploads.glob("*/planted")))
    stream = io.BytesIO()
    photo.resize((40, 30)).save(stream, "PNG")
    (path,) = stranger.upload(("clean.png", stream.getvalue())).json()
    success, outputs = stranger.call(stranger.index["explore"], [{"path": path}, 10, "4:2:0", 0, *SETTINGS])
    assert success, outputs


@browser_test
def test_what_the_page_does_not_need_is_closed(stranger) -> None:
    for address in ("component_server", "process_recording", "run-history/connect", "vibe-edit", "stream/a/close"):
        assert stranger.client.post(address, json={}).status_code == 404
    for address in ("deep_link?session_hash=a", "proxy=http://127.0.0.1:9/", "file=http://127.0.0.1:9/", "runs"):
        assert stranger.client.get(address).status_code == 404
    assert stranger.client.get("../?deep_link=a").status_code == 404
    assert set(stranger.client.get("info").json()["named_endpoints"]) == {"/restore", "/explore", "/dequantize"}
    for listener in stranger.listeners:
        name, data = listener["api_name"], [None] * len(listener["inputs"])
        if listener["api_visibility"] != "public":
            assert stranger.client.post(f"call/{name}", json={"data": data}).status_code == 400
        elif listener["queue"]:
            assert stranger.client.post(f"run/{name}", json={"data": data}).status_code == 404
    assert stranger.client.post("queue/join", content=b"[" * 200_000).status_code == 413
    outputs = stranger.client.get("info").json()["named_endpoints"]["/restore"]["returns"]
    assert not [output["label"] for output in outputs if output["label"].startswith("value_")]


@browser_test
def test_the_api_obeys_the_limits_of_the_controls(stranger, jpeg) -> None:
    (path,) = stranger.upload(("chelsea.jpg", jpeg)).json()
    names = ["num_samples", "num_inference_steps", "init_timestep", "timestep_spacing", "eta", "eta_b", "temperature"]
    names += [
        "antithetic",
        "equivariant",
        "correction",
        "error_scale",
        "noise_accounting",
        "consistent",
        "sharpness",
        "seed",
    ]
    wrong = {"num_samples": [17, 1.5, "2", True], "eta": [2, -1], "correction": ["none", None], "consistent": ["yes"]}
    wrong |= {"seed": [None, -1, 2**53, 0.5], "timestep_spacing": [["log"]], "init_timestep": [1001]}
    for name, values in wrong.items():
        for value in values:
            settings = list(SETTINGS)
            settings[names.index(name)] = value
            success, said = stranger.call(stranger.index["restore"], [{"path": path}, *AS_IT_IS, *settings])
            assert not success
            assert re.fullmatch(rf"(.* \({name}\)|{name}) is .*; it must be .*\.", said, re.IGNORECASE)


@browser_test
def test_places_are_taken_by_work_alone_and_given_back(stranger, space, jpeg, photo) -> None:
    """The limit of this server is two."""
    without_inputs = [listener for listener in stranger.listeners if not listener["inputs"] and listener["queue"]]
    assert without_inputs
    for number in range(20):
        for listener in without_inputs:
            stranger.join(listener["id"], [], f"idler{number}")
            wait_for(lambda: stranger.client.get("queue/status").json()["queue_size"] == 0)
    (path,) = stranger.upload(("chelsea.jpg", jpeg)).json()
    success, said = stranger.call(stranger.index["restore"], [{"path": path}, *AS_IT_IS, *SETTINGS])
    assert success, said

    (large,) = stranger.upload(("large.jpg", jpeg_bytes(photo.resize((500, 400)), quality=10))).json()
    work = {"data": [{"path": large}, *AS_IT_IS, *LONG]}
    for session in ("worker0", "worker1"):
        assert stranger.client.post("call/restore", json=work | {"session_hash": session}).status_code == 200
    third = stranger.client.post("call/restore", json=work)
    assert third.status_code == 400
    assert "the limit of this server is 2" in third.json()["detail"]
    for session in ("worker0", "worker1"):
        body = {"fn_index": stranger.index["cancel"], "data": [], "session_hash": session}
        assert stranger.client.post("run/cancel", json=body).status_code == 200
    wait_for(lambda: stranger.call(stranger.index["restore"], [{"path": path}, *AS_IT_IS, *SETTINGS])[0])
    assert idle(space)


@browser_test
def test_many_sessions_leave_no_memory_behind(stranger, space) -> None:
    import psutil

    calls = [("inspect", [None, *AS_IT_IS]), ("restore", [None, *AS_IT_IS, *SETTINGS])]

    def use(sessions: range) -> int:
        for number in sessions:
            name, data = calls[number % 2]
            while stranger.join(stranger.index[name], data, f"session{number}").status_code != 200:
                time.sleep(0.02)  # all places are taken
        return psutil.Process(space.pid).memory_info().rss

    before = use(range(500))  # of so many, unread results are kept
    assert use(range(500, 750)) - before < 5e6


@browser_test
def test_a_rejected_upload_leaves_nothing_on_disk(stranger, space) -> None:
    def there() -> set[tuple[str, str]]:  # os.walk does not mind what goes meanwhile
        return {(folder, name) for folder, _, names in os.walk(space.uploads) for name in ["", *names]}

    before = there()
    assert stranger.upload(("..", b"x")).status_code == 400
    assert stranger.upload(("a.jpg", b"x"), ("..", b"y")).status_code == 400
    assert stranger.upload(*[("a.jpg", b"x")] * 17).status_code == 400
    assert stranger.upload(("a.jpg", bytes(400_000))).status_code == 413
    assert stranger.upload(*[("a.jpg", bytes(200_000))] * 9).status_code == 413
    assert stranger.client.post("upload", files={"other": b"x"}).status_code == 400
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert stranger.client.post("upload", content=b"nonsense", headers=form).status_code == 400
    assert there() == before
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    head += b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + bytes(30_000)
    with socket.create_connection(("127.0.0.1", space.port)) as broken_off:
        broken_off.sendall(head)
        wait_for(lambda: there() != before)
    wait_for(lambda: there() == before)


@browser_test
def test_markers_that_viewers_refuse_are_refused_before_the_restoration(stranger, space, jpeg) -> None:
    start = jpeg.index(b"\xff\xe0")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    odd = jpeg[:start] + b"\xff\xe0\x00\x08JFIF\x00\x01" + jpeg[start + 2 + length :]
    (path,) = stranger.upload(("odd.jpg", odd)).json()
    before = space.log.read_text()
    for listener, data in (
        ("restore", [{"path": path}, *AS_IT_IS, *SETTINGS]),
        ("inspect", [{"path": path}, *AS_IT_IS]),
    ):
        success, said = stranger.call(stranger.index[listener], data)
        assert "odd.jpg has markers that viewers do not understand" in str(said)
        assert success == (listener == "inspect")
    assert "calls of the prior" not in space.log.read_text().removeprefix(before)


@browser_test
@pytest.mark.parametrize(("listener", "rest"), [("explore", [100, "4:4:4", 0]), ("dequantize", [7, "left", 0])])
def test_odd_pictures_are_read_as_everywhere(stranger, tmp_path, listener, rest) -> None:
    save_odd_pictures(tmp_path)

    def read(name: str) -> Image.Image:
        (path,) = stranger.upload((name, (tmp_path / name).read_bytes())).json()
        success, outputs = stranger.call(stranger.index[listener], [{"path": path}, *rest, *SETTINGS])
        if not success:
            raise ValueError(outputs)
        (address,) = re.findall(r'src="gradio_api/([^"]*original.png)"', str(outputs))
        return Image.open(io.BytesIO(stranger.client.get(address).content))

    deep = np.asarray(read("deep.png"), np.float32)
    assert np.abs(deep - np.linspace(0, 255, 64)).max() <= 0.5
    assert np.asarray(read("clear.png")).min() == 255
    assert read("turned.png").size == (32, 48)
    with pytest.raises(ValueError, match=r"float\.tif: an image of floating-point numbers has no known range"):
        read("float.tif")


@browser_test
def test_a_picture_that_is_a_program_is_not_run(stranger, photo) -> None:
    stream = io.BytesIO()
    photo.resize((40, 30)).save(stream, "EPS")
    (path,) = stranger.upload(("image.png", stream.getvalue())).json()
    success, said = stranger.call(stranger.index["explore"], [{"path": path}, 10, "4:2:0", 0, *SETTINGS])
    assert (success, said) == (False, "image.png: not an image that can be read.")


@browser_test
def test_uploads_that_are_too_old_or_too_many_are_deleted(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(SPACE)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    import gate

    folders = [gate.UPLOADS / str(number) for number in range(4)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "a.jpg").touch()
        os.utime(folder, (time.time() - 100 + number,) * 2)
    os.utime(folders[3], (0, 0))
    kept, known = (
        SimpleNamespace(keep_in_cache={str(folders[0] / "a.jpg")}),
        {str(folder / "a.jpg") for folder in folders},
    )
    page = SimpleNamespace(blocks={0: kept}, temp_file_sets=[known])
    gate.sweep(page)
    assert [folder.exists() for folder in folders] == [True, True, True, False]
    monkeypatch.setattr(gate, "_MAX_FOLDERS", 1)
    gate.sweep(page)
    assert [folder.exists() for folder in folders] == [True, False, True, False]
    assert known == {str(folders[0] / "a.jpg"), str(folders[2] / "a.jpg")}


def test_folders_of_dead_servers_are_swept_and_those_of_the_living_stay(tmp_path) -> None:
    program = (
        "import sys; from folders import own_folder; folder = own_folder('ddrm-jpeg-x-', sys.argv[1]);"
        "(folder / 'upload').touch(); print(folder, flush=True); sys.stdin.read()"
    )

    def start() -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, "-c", program, tmp_path]
        server = subprocess.Popen(command, cwd=SPACE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return server, Path(server.stdout.readline().strip())

    (tmp_path / "ddrm-jpeg-x-of_a_visitor").mkdir()  # no name that a server gives
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ddrm-jpeg-x-abcd1234").symlink_to(tmp_path / "elsewhere")
    (killed, its), (living, own) = start(), start()
    assert (its / "upload").exists()
    killed.kill()
    killed.wait()
    assert (its / "upload").exists()
    third, another = start()
    assert not its.exists()
    assert (own / "upload").exists()
    for server in (living, third):
        server.communicate("")
    assert not own.exists()
    assert not another.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "ddrm-jpeg-x-of_a_visitor",
        "ddrm-jpeg-x-abcd1234",
        "elsewhere",
    }


@browser_test
def test_a_server_that_is_stopped_leaves_nothing_and_one_that_is_killed_until_the_next_start(
    photo, prior_folder, tmp_path
) -> None:
    large = jpeg_bytes(photo.resize((500, 400)), quality=10)
    for end in (signal.SIGKILL, signal.SIGTERM):
        with serving(tmp_path, prior_folder, 1, end) as space, strange(space) as stranger:
            assert len(left_behind(tmp_path)) == 2  # its own
            (path,) = stranger.upload(("large.jpg", large)).json()
            stranger.join(stranger.index["restore"], [{"path": path}, *AS_IT_IS, *LONG], "worker")
            wait_for(lambda space=space: not idle(space))
        assert Path(path).exists() == (end == signal.SIGKILL)


@browser_test
def test_no_request_leaves_a_traceback_and_each_is_answered(stranger, space) -> None:
    """That no traceback is in the log is asserted when the server ends."""
    client, restore = stranger.client, stranger.index["restore"]
    call = {"fn_index": restore, "data": [], "session_hash": "odd"}
    bodies = [
        b"",
        b"{",
        b"\xff",
        b"[" * 90_000,
        b"NaN",
        b'{"data": [1e999]}',
        b'{"session_hash": "\\ud800"}',
        b"1" * 9000,
    ]
    requests = [("POST", address, {"content": body}) for body in bodies for address in ("queue/join", "call/restore")]
    for address in ("queue/join", "run/cancel", "call/restore", "cancel", "reset"):
        odd = [{"session_hash": [1]}, {"data": {}}]
        if address != "call/restore":  # which has no number
            odd += [{"fn_index": -1}, {"fn_index": 2**70}, {"fn_index": "x"}]
        requests += [("POST", address, {"json": call | one}) for one in odd]
        requests += [(method, address, {}) for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "ODD")]
    requests += [("POST", f"{way}/nobody", {"json": {"data": []}}) for way in ("run", "call", "call/v2")]
    requests += [("GET", address, {}) for address in (
        "queue/data?session_hash=unknown", "queue/data", "call/restore/unknown", "heartbeat/%00", "heartbeat/a/b",
        "upload_progress?upload_id=unknown", "../assets/" + 300 * "x", "../static/%00",
    )]  # fmt: skip
    form, disposition = "multipart/form-data; boundary=", b'Content-Disposition: form-data; name="files"'
    for kind, head in (
        (form + 5000 * "b", disposition + b'; filename="a.jpg"'),
        (form + "c", disposition + b'; filename="a.jpg"'),
        (form + "b", disposition),
        (form + "b", b"Content-Disposition: nothing"),
        (form, disposition),
    ):
        body = b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--\r\n"
        for address in ("upload", "upload?upload_id=a"):
            requests.append(("POST", address, {"content": body, "headers": {"Content-Type": kind}}))
    requests.append(("GET", "../", {"headers": {"X-Forwarded-Host": "[::1"}}))
    for method, address, options in requests:
        answer = client.request(method, address, **options)
        assert 400 <= answer.status_code < 500, (method, address[:40], str(options)[:200], answer.text[:200])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    # What the queue takes before it looks at it ends in a sentence.
    assert stranger.call(restore, []) == (False, f"The request has 0 inputs; send {len(AS_IT_IS) + len(SETTINGS) + 1}.")
    assert stranger.call(restore, [math.pi] * 90)[0] is False


@browser_test
def test_what_is_served_is_what_it_is_called(stranger, jpeg) -> None:
    client = stranger.client
    (path,) = stranger.upload(("page.jpg", b"<!doctype html><script>alert(1)</script>")).json()
    crossing = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        client.get(f"file={quote(path)}"),
        client.get("../"),
        client.get("../config"),
        client.get("../static/img/logo.svg"),
        client.get("nothing"),
        client.options("queue/join", headers=crossing),
    ):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


# --- What reads an upload ---


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SPACE)
    import reader

    return reader


def test_an_upload_that_takes_too_long_or_too_much_memory_is_refused_in_words(reader, monkeypatch) -> None:
    flat = io.BytesIO()
    Image.new("RGB", (2000, 2000), "teal").save(flat, "PNG")
    arguments = reader.open_upload, 4, flat.getvalue(), "flat.png", False, Assumed()
    with pytest.raises(
        reader.Refused, match=r"flat\.png takes more to read than .*, 20 s of processor time and 256 MB"
    ):
        reader.read_within("flat.png", 0, *arguments)  # with the limits of a smaller image
    monkeypatch.setattr(reader, "_SECONDS", 1)
    with pytest.raises(reader.Refused, match=r"a\.jpg takes more to read than this server allows, 1 s"):
        reader.read_within(
            "a.jpg", 0, sum, range(10**12)
        )  # as a regular expression, it lets nobody else work meanwhile


def test_what_reads_an_upload_says_what_is_wrong_with_it(reader, jpeg) -> None:
    def read(data: bytes, megapixels: float = 4) -> Any:
        return reader.read_within("a.jpg", 4, reader.open_upload, megapixels, data, "a.jpg", False, Assumed())

    with pytest.raises(JPEGDamageError, match=r"a\.jpg: truncated"):
        read(jpeg[:1000])
    with pytest.raises(JPEGFileError, match=r"a\.jpg: not a JPEG but text"):
        read(b"nothing")
    with pytest.raises(
        reader.Refused, match=r"a\.jpg has 112 x 84 pixels, 0\.00941 megapixels; the limit .* is 0\.009"
    ):
        read(jpeg, 0.009)


def test_what_reads_an_upload_hands_back_all_but_unread_metadata(reader, jpeg) -> None:
    opened = reader.read_within("a.jpg", 4, reader.open_upload, 4, jpeg, "a.jpg", False, Assumed())
    whole = JPEGFile.open(jpeg)
    for own, other in zip(opened.file.coefficients, whole.coefficients, strict=True):
        np.testing.assert_array_equal(own, other)
    assert (opened.file.orientation, opened.sizes) == (6, whole.metadata.sizes())
    assert opened.file.metadata.exif != whole.metadata.exif
    assert opened.metadata == whole.metadata.upright()
    assert opened.earlier is None
    with Image.open(io.BytesIO(jpeg)) as decoded:
        np.testing.assert_array_equal(np.asarray(opened.decoded), np.asarray(upright(decoded)))
    pixels = np.asarray(opened.decoded)
    deep = pixels.astype(np.uint16) * 257
    written = reader.read_within("a", 0, reader.files, pixels, deep, opened.metadata)
    kinds = {".png": ("png", pixels), ".webp": ("webp", pixels), ".tif": ("tiff", pixels), "_16bit.png": ("png", deep)}
    assert list(written) == list(kinds)
    for end, (kind, own) in kinds.items():
        assert written[end] == encode(own, kind, whole.metadata.upright())[0]
    assert list(reader.files(deep, deep, opened.metadata)) == [".png", ".tif", "_16bit.png"]


def test_what_reads_an_upload_parses_it_once(reader, jpeg) -> None:
    parsed = []

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is markers.parse.__code__:
            parsed.append(frame)

    sys.setprofile(profile)
    try:
        reader.open_upload(4, jpeg, "a.jpg", False, Assumed())
    finally:
        sys.setprofile(None)
    assert len(parsed) == 1


@browser_test
def test_an_upload_that_is_chosen_and_then_restored_is_read_once(monkeypatch, jpeg, prior_folder, tmp_path) -> None:
    monkeypatch.syspath_prepend(SPACE)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    import layout
    import limits
    import work
    from gradio.utils import get_upload_folder

    monkeypatch.setattr(work, "PIPE", DDRMJPEGPipeline.from_prior(prior_folder))
    upload = Path(get_upload_folder(), "chosen", "a.jpg")
    upload.parent.mkdir()
    upload.write_bytes(jpeg)
    inspect, *_ = [listener.fn for listener in layout.build().fns.values() if listener.name == "inspect"]
    reads, processes = [], []

    def count(event: str, arguments: tuple) -> None:
        if event == "open" and arguments[:2] == (str(upload), None):  # by os.open, as uploads are
            reads.append(arguments)
        if event == "subprocess.Popen":
            processes.append(arguments)

    sys.addaudithook(count)
    assert "112 &times; 84" in inspect(str(upload), False, False, 0, "4:2:0")[0]
    assert (len(reads), len(processes)) == (1, 1)
    (tmp_path / "go").touch()
    settings = Settings(num_inference_steps=1, init_timestep=60)
    arguments = False, Assumed(), settings, 0, tmp_path / "go"
    work._result_of(work._restored(str(upload), *arguments))
    assert (len(reads), len(processes)) == (1, 2), "the second writes the result"

    paths = [upload.with_name(f"{number}.jpg") for number in range(9)]
    for path in paths:
        path.write_bytes(jpeg)
    opened = [weakref.ref(limits.read_source(str(path), False, Assumed())) for path in (*paths, paths[-1])]
    assert opened[0]() is None, "only the last few are kept"
    assert opened[-1]() is opened[-2]()
    shutil.rmtree(upload.parent)
    with pytest.raises(FileNotFoundError):
        limits.read_source(str(paths[-1]), False, Assumed())
    limits.forget_deleted()
    assert opened[-1]() is None


@pytest.fixture(scope="module")
def screenshot(photo: Image.Image) -> bytes:
    """An image of which it takes long to say what it was."""
    picture = Image.new("RGB", (500, 500), "white")
    picture.paste(Image.open(io.BytesIO(jpeg_bytes(photo, quality=60))), (101, 53))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@browser_test
def test_the_page_itself_does_not_read_what_is_uploaded(stranger, space, screenshot) -> None:
    import psutil

    (path,) = stranger.upload(("screenshot.png", screenshot)).json()
    before = psutil.Process(space.pid).cpu_times()
    success, outputs = stranger.call(stranger.index["inspect"], [{"path": path}, *AS_IT_IS])
    after = psutil.Process(space.pid).cpu_times()
    assert success
    assert "341 &times; 256 from column 101, row 53" in str(outputs)
    assert after.user - before.user < (after.children_user - before.children_user) / 3


@browser_test
def test_an_upload_is_looked_at_in_a_place_of_which_there_are_as_many_as_for_work(stranger, jpeg) -> None:
    (path,) = stranger.upload(("chelsea.jpg", jpeg)).json()
    inspect, data = stranger.index["inspect"], [{"path": path}, *AS_IT_IS]
    joined = [stranger.join(inspect, data, f"looker{number}") for number in range(4)]
    assert [one.status_code for one in joined] == [200, 200, 400, 400]
    assert "the limit of this server is 2" in joined[2].json()["detail"]
    wait_for(lambda: stranger.call(inspect, data)[0])


CONTROLS = """
import json, sys
sys.path.insert(0, {space!r})
import address, layout
controls = layout._controls()
print(json.dumps({{name: [one.label, one.info] for name, one in controls.items() if name != "seed"}}))
print(layout._links()[0])
layout.build()
"""


@browser_test
@pytest.mark.parametrize("kind", [DDRMScheduler, PiGDMScheduler])
def test_the_page_has_a_control_for_every_setting_that_the_priors_sampler_takes(kind, prior_folder, tmp_path) -> None:
    shutil.copytree(prior_folder, tmp_path / "prior")
    kind().save_pretrained(tmp_path / "prior" / "scheduler")
    (tmp_path / "prior" / "README.md").touch()
    prelude = f"import os; os.environ['DDRM_JPEG_PRIOR'] = {str(tmp_path / 'prior')!r}"
    done = processes.run(CONTROLS.format(space=str(SPACE)), prelude=prelude)
    assert done.returncode == 0, done.stderr
    shown, links = json.loads(done.stdout.splitlines()[0]), done.stdout.splitlines()[1]
    assert re.search('href="gradio_api/file=/.*/about/ddrm-jpeg.zip">Source<.*/about/model_card.md">Model<', links)
    of_posterior = {"eta_b", "error_scale", "noise_accounting"}
    assert set(shown) == set(ABOUT) - (of_posterior if kind is PiGDMScheduler else set())
    for name, (label, info) in shown.items():
        assert label == f"{ABOUT[name].label} ({name})"
        assert info == ABOUT[name].words or name == "init_timestep"
