"""Start the page, upload an example through its API, and compare what comes back: python visit_page.py APP EXAMPLES"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
from PIL import Image


def main() -> None:
    app, examples = sys.argv[1], Path(sys.argv[2])
    environment = os.environ | {"GRADIO_SERVER_PORT": "", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    environment.pop("GRADIO_SERVER_PORT")
    page = subprocess.Popen([sys.executable, app], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = next(found[0] for line in page.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        with httpx.Client(base_url=f"{address}/gradio_api/", timeout=300) as client:
            restored = restore(client, examples / "cat.jpg")
    finally:
        page.terminate()
        page.wait(60)
    original = Image.open(examples / "originals" / "cat.png").convert("RGB")
    before, after = (error(picture, original) for picture in (Image.open(examples / "cat.jpg"), restored))
    assert restored.size == original.size
    assert after < 0.8 * before, (before, after)
    print(f"restored through the page: mean squared error {before:.1f} before, {after:.1f} after")


def restore(client: httpx.Client, file: Path) -> Image.Image:
    """What the page's button does, with the page's own settings."""
    config = client.get("../config").json()
    (listener,) = (one for one in config["dependencies"] if one["api_name"] == "restore")
    values = {one["id"]: one["props"].get("value") for one in config["components"]}
    (path,) = client.post("upload", files=[("files", (file.name, file.read_bytes()))]).json()
    data = [{"path": path}, *(values[number] for number in listener["inputs"][1:])]
    session = {"session_hash": "a-stranger"}
    joined = client.post("queue/join", json={"fn_index": listener["id"], "data": data, **session})
    joined.raise_for_status()
    with client.stream("GET", "queue/data", params=session) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ") or "{}")
            if message.get("msg") == "process_completed":
                assert message["success"], message["output"]
                said = json.dumps(message["output"]["data"])
                (path,) = {*re.findall(r'file=([^"\\]+_restored\.png)', said)}
                return Image.open(io.BytesIO(client.get(f"file={path}").raise_for_status().content)).convert("RGB")
    raise AssertionError("the stream ended before the restoration did")


def error(picture: Image.Image, original: Image.Image) -> float:
    return float(np.square(np.asarray(picture.convert("RGB"), float) - np.asarray(original, float)).mean())


if __name__ == "__main__":
    main()
