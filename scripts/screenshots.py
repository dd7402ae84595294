"""Make the images of the web page in docs/ anew, in the chromium of this machine.

python scripts/screenshots.py [FOLDER]

It starts the page, restores an example of it as a visitor would, and writes FOLDER/space.webp and space-dark.webp (1280
pixels wide), space-phone.webp (390 pixels, dark) and space-phone-light.webp; FOLDER is docs/ by default.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from pipeline_ddrm_jpeg.extras import needs

with needs("browser"):
    from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
# Name, width and height in pixels, colours.
SCREENS = [
    ("space", (1280, 960), "light"),
    ("space-dark", (1280, 960), "dark"),
    ("space-phone", (390, 844), "dark"),
    ("space-phone-light", (390, 844), "light"),
]


@contextmanager
def server():
    """The page's address, as long as it is served."""
    environment = os.environ | {"GRADIO_SERVER_NAME": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, ROOT / "space" / "app.py"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+:\d+", line)))
        finally:
            process.terminate()


def take(page, address: str, folder: Path) -> None:
    """Restore an example once, and look at it on every screen."""
    page.goto(address)
    page.get_by_role("button", name="Restore", exact=True, disabled=False).wait_for()
    page.locator(".examples button").first.click()
    page.locator("#status .example").wait_for(state="detached")
    page.locator(".compare img.right").wait_for(timeout=300_000)
    page.get_by_role("button", name="Cancel").wait_for(state="hidden")
    page.mouse.move(0, 0)
    for name, (width, height), colours in SCREENS:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=colours)
        place = "document.querySelector('#status').getBoundingClientRect().top + scrollY - 100"
        page.evaluate(f"scrollTo(0, innerWidth < 768 ? {place} : 0)")
        page.wait_for_timeout(500)  # what fades has faded
        image = Image.open(io.BytesIO(page.screenshot()))
        image.convert("RGB").save(folder / f"{name}.webp", quality=80, method=6)
        print(folder / f"{name}.webp", image.size)


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:2] == ["--help"]:
        sys.exit(__doc__)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs")
    with server() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser.new_page(), address, folder)
        browser.close()


if __name__ == "__main__":
    main()
