"""Make the images of the web page in docs/ anew, in the chromium of this machine.

python scripts/screenshots.py [FOLDER]

It starts the page, restores an example of it as a visitor would, and writes FOLDER/space.webp (1280 pixels wide) and
FOLDER/space-phone.webp (390 pixels, dark); FOLDER is docs/ by default.
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
SCREENS = [("space", (1280, 960), "light"), ("space-phone", (390, 844), "dark")]


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


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:2] == ["--help"]:
        sys.exit(__doc__)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs")
    with server() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height), colours in SCREENS:
            screen = {"width": width, "height": height}
            page = browser.new_context(viewport=screen, color_scheme=colours).new_page()
            page.goto(address)
            restore = page.get_by_role("button", name="Restore", exact=True, disabled=False)
            restore.wait_for()
            page.locator(".examples button").first.click()
            page.locator(".compare").wait_for(state="detached")
            page.locator("#facts h2").wait_for()
            restore.click()
            page.locator(".compare img.right").wait_for()
            page.get_by_role("button", name="Cancel").wait_for(state="hidden")
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, document.querySelector('#status').getBoundingClientRect().top + scrollY - 100)")
            page.wait_for_timeout(500)  # what fades has faded
            image = Image.open(io.BytesIO(page.screenshot()))
            image.convert("RGB").save(folder / f"{name}.webp", quality=85, method=6)
            print(folder / f"{name}.webp", image.size)
        browser.close()


if __name__ == "__main__":
    main()
