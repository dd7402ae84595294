"""How often the JPEG that an image was is found, and what restoring without its file costs.

python scripts/reports/history.py PICTURES [--clean FOLDER...] [--limit N] [--restored N] [--output docs/history]

PICTURES holds folders of images that never were JPEGs, of 256 x 256 pixels or more, as --clean may name more of.
Writes OUTPUT.md. An image counts as right when grid, chroma subsampling and every step that is said to be determined
are; djpeg (libjpeg-turbo's own decoder) takes part where it is installed, and so does chromium (with the extra
browser), of whose screenshots of pages with one of the images the image is restored.
"""

import argparse
import base64
import io
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from common import ROOT, page_of, write
from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.decoded.history import JPEGHistory
from pipeline_ddrm_jpeg.decoded.regions import estimate_earlier, estimate_history
from pipeline_ddrm_jpeg.evaluation.run import fingerprint
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.jpeg.tables import SUBSAMPLING_FACTORS, quality_tables

QUALITIES = (5, 10, 20, 50, 75, 90)
CROPS = (None, 200, 64)
DJPEG = {"djpeg": (), "djpeg -nosmooth": ("-nosmooth",), "djpeg -dct float": ("-dct", "float")}
SECOND_QUALITIES, FIRST_QUALITIES = (75, 85, 92, 97), (10, 20, 40, 60)
OF_A_KIND = 20  # images of each kind that is drawn
SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff")


def encode(image: Image.Image, quality: int, subsampling: str = "4:2:0") -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return stream.getvalue()


def decode(data: bytes, decoder: str = "Pillow") -> np.ndarray:
    if decoder != "Pillow":
        data = subprocess.run(["djpeg", "-ppm", *DJPEG[decoder]], input=data, capture_output=True, check=True).stdout
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def grid_is_right(found: JPEGHistory | None, top: int, left: int) -> bool:
    return found is not None and (found.offset[0] % 8, found.offset[1] % 8) == (top % 8, left % 8)


def luma_is_right(found: JPEGHistory | None, quality: int, top: int, left: int) -> bool:
    if not grid_is_right(found, top, left):
        return False
    shown = found.determined[0]
    return np.array_equal(found.quantization_tables[0][shown], quality_tables(quality)[0][shown])


def all_is_right(found: JPEGHistory | None, quality: int, subsampling: str, top: int, left: int) -> bool:
    """Grid, subsampling with its phase, and all determined steps."""
    if not luma_is_right(found, quality, top, left) or found.chroma_subsampling != subsampling:
        return False
    across, down = SUBSAMPLING_FACTORS[subsampling]
    shown = found.determined[1]
    return found.offset == (top % (8 * down), left % (8 * across)) and np.array_equal(
        found.quantization_tables[1][shown], quality_tables(quality)[1][shown]
    )


def share(results: Iterable[bool]) -> str:
    results = list(results)
    return f"{sum(results)}/{len(results)}"


def detection(images: list[Image.Image], say: Callable[[str], None]) -> list[list[str]]:
    """Rows of: decoder, subsampling, crop, and for each quality the shares with right luma and with all right."""
    decoders = ["Pillow", *(DJPEG if shutil.which("djpeg") else ())]
    settings = [("Pillow", "4:2:0", crop) for crop in CROPS]
    settings += [("Pillow", subsampling, None) for subsampling in ("4:2:2", "4:4:4")]
    settings += [(decoder, "4:2:0", None) for decoder in decoders[1:]]
    rows, rng = [], np.random.default_rng(0)
    for decoder, subsampling, crop in settings:
        cells = []
        for quality in QUALITIES:
            luma, everything = [], []
            for image in images:
                pixels, top, left = decode(encode(image, quality, subsampling), decoder), 0, 0
                if crop:
                    top, left = (int(rng.integers(side - crop + 1)) for side in pixels.shape[:2])
                    pixels = pixels[top : top + crop, left : left + crop]
                found = estimate_history(pixels)
                luma.append(luma_is_right(found, quality, top, left))
                everything.append(all_is_right(found, quality, subsampling, top, left))
            cells.append(f"{share(luma)}, {share(everything)}")
        rows.append([decoder, subsampling, f"{crop} x {crop}" if crop else "whole", *cells])
        say(" ".join(rows[-1]))
    return rows


def second_saves(images: list[Image.Image]) -> list[list[str]]:
    """Rows of: second quality, shift, and for each first quality the shares with its grid, and with it within 2."""
    rows = []
    for second in SECOND_QUALITIES:
        for top, left in ((0, 0), (3, 5)):
            cells = []
            for first in (*FIRST_QUALITIES, None):
                grid, quality = [], []
                for image in images:
                    pixels = decode(encode(image, first)) if first else np.asarray(image)
                    again = decode(encode(Image.fromarray(pixels[top:, left:]), second))
                    found = estimate_earlier(again, quality_tables(second))
                    grid.append(found is not None if first is None else grid_is_right(found, top, left))
                    quality.append(grid[-1] and first is not None and abs(found.quality_factor - first) <= 2)
                cells.append(share(grid) if first is None else f"{share(grid)}, {share(quality)}")
            rows.append([str(second), f"{left}, {top}" if top else "aligned", *cells])
    return rows


def restorer() -> Callable[..., np.ndarray]:
    """What makes pixels of a source, with the preset `fast`."""
    pipe = DDRMJPEGPipeline.from_embedded(dtype="float32")
    pipe.set_progress_bar_config(disable=True)

    def restored(source: object, **options: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return np.asarray(pipe(source, generator=generator, preset="fast", **options).images[0])

    return restored


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def losses(images: list[Image.Image]) -> list[list[str]]:
    """Rows of: quality, and mean PSNR of the JPEG and of what is restored from its file, its image and a crop."""
    restored, rows = restorer(), []
    for quality in (10, 40):
        values = []
        for image in images:
            data, true = encode(image, quality), np.asarray(image)
            pixels, of_file = decode(data), restored(data)
            inside = (slice(13, 213), slice(22, 222))
            if estimate_history(pixels) is None or estimate_history(pixels[inside]) is None:
                continue
            of_pixels = restored(Image.fromarray(pixels), history="estimate")
            of_crop = restored(Image.fromarray(pixels[inside]), history="estimate")
            values.append(
                [
                    psnr(pixels, true),
                    psnr(of_file, true),
                    psnr(of_pixels, true),
                    psnr(of_file[inside], true[inside]),
                    psnr(of_crop, true[inside]),
                ]
            )
        rows.append([str(quality), str(len(values)), *(f"{value:.2f}" for value in np.mean(values, axis=0))])
    return rows


def second_losses(images: list[Image.Image]) -> list[list[str]]:
    """Rows of: first and second quality, shift, images, and mean PSNR of the second file and of what is restored from
    the first, from the second, and from the first as the second shows it.
    """
    restored, rows = restorer(), []
    for first, second, top, left in ((20, 75, 0, 0), (40, 85, 0, 0), (20, 85, 3, 5), (40, 92, 3, 5)):
        values = []
        for image in images:
            once, true = encode(image, first), np.asarray(image)[top:, left:]
            again = encode(Image.fromarray(decode(once)[top:, left:]), second)
            if estimate_earlier(decode(again), quality_tables(second)) is not None:
                ways = decode(again), restored(once)[top:, left:], restored(again), restored(again, history="estimate")
                values.append([psnr(one, true) for one in ways])
        shift = f"{left}, {top}" if top else "aligned"
        means = (f"{value:.2f}" for value in np.mean(values, axis=0))
        rows.append([str(first), str(second), shift, f"{len(values)}/{len(images)}", *means])
    return rows


def screenshots(images: list[Image.Image]) -> list[list[str]]:
    """Rows of: quality, screenshots, in how many the JPEG, and its rectangle, is found, how many pixels changed outside
    it, and mean PSNR of the JPEG and of what is restored from its file and from the screenshot.
    """
    from playwright.sync_api import sync_playwright

    restored, rng, rows = restorer(), random.Random(0), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for quality in (10, 30, 75):
            right, exact, changed, values = 0, 0, 0, []
            for image in images:
                across, down = rng.choice([(1024, 768), (1366, 768), (1920, 1080)])
                true = np.asarray(image)[: image.height - rng.randrange(16), : image.width - rng.randrange(16)]
                left, top = rng.randrange(across - true.shape[1]), rng.randrange(down - true.shape[0])
                subsampling = rng.choice(["4:2:0", "4:2:2", "4:4:4"])
                data = encode(Image.fromarray(true), quality, subsampling)
                page = browser.new_page(viewport={"width": across, "height": down})
                dark = "background:#1b1f24; color:#d0d7de;" if rng.random() < 0.3 else ""
                page.set_content(
                    f'<body style="{dark} margin:0; overflow:hidden">{"Words that stand around a picture. " * 600}'
                    f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}"'
                    f' style="position:absolute; left:{left}px; top:{top}px">'
                )
                page.wait_for_function("document.images[0].complete")
                shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                page.close()
                inside = (slice(top, top + true.shape[0]), slice(left, left + true.shape[1]))
                history = estimate_history(np.asarray(shot))
                if history is None or history.region is None:
                    continue
                y, x = history.region[:2]
                right += all_is_right(history, quality, subsampling, y - top, x - left)
                exact += history.region == (top, left, *true.shape[:2])
                of_shot = restored(shot, history="estimate")
                others = (of_shot != np.asarray(shot)).any(axis=2)
                others[inside] = False
                changed += int(others.sum())
                values.append([psnr(one, true) for one in (decode(data), restored(data), of_shot[inside])])
            means = (f"{value:.2f}" for value in np.mean(values, axis=0))
            shares = [f"{right}/{len(images)}", f"{exact}/{len(images)}", str(changed)]
            rows.append([str(quality), str(len(images)), *shares, *means])
        browser.close()
    return rows


def never_jpegs(paths: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Images without a JPEG, or with one that was lost since, after what they are."""
    rng = np.random.default_rng(0)
    for number, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        yield "photographs and graphics as they are", np.array(image)
        scale = rng.uniform(0.4, 0.95)
        size = [max(round(scale * side), 64) for side in image.size]
        made = image if number % 2 else Image.fromarray(decode(encode(image, int(rng.integers(20, 95)))))
        yield "the same resized, half of them a JPEG before", np.array(made.resize(size))
    for number, path in enumerate(evenly(paths, OF_A_KIND)):
        image, quality = Image.open(path).convert("RGB").crop((0, 0, 256, 256)), (10, 30, 75, 90)[number % 4]
        times = (2, 3, 4, 5, 8, 8, 12, 16, 16, 32)[number % 10]
        small = image.resize((-(-240 // times), -(-200 // times)), Image.Resampling.LANCZOS)
        smooth = small.resize((240, 200), Image.Resampling.BICUBIC)
        labels = np.asarray(small.convert("L")) // 28
        colours = rng.integers(256, size=(10, 3), dtype=np.uint8)
        yield "labels, enlarged", enlarged((colours[labels], labels, 28 * labels)[number % 3], times)
        palette = small.quantize((8, 64)[number % 2]).convert("RGB")
        yield "pixel art, enlarged", enlarged(np.asarray(small if number % 3 else palette), times)
        mosaic = np.asarray(image).copy()
        part = mosaic[64:192, 64:192]
        part[:] = enlarged(part[::times, ::times], times)[:128, :128]
        yield "mosaics in a part of an image", mosaic
        depth = np.asarray(smooth.convert("L")).astype(float) * rng.uniform(0.3, 1) + np.linspace(0, 40, 240)
        yield "depth in few levels", np.floor(depth / (1, 8)[number % 2]).astype(np.uint8)
        yield "dithered with few colours", np.array(image.quantize((2, 16, 64)[number % 3]).convert("RGB"))
        for name in ("webp", "avif"):
            stream = io.BytesIO()
            image.save(stream, name, quality=quality)
            yield "lossy WebP and AVIF", np.array(Image.open(stream).convert("RGB"))
        stream = io.BytesIO()
        (image if number % 2 else smooth).save(stream, "jpeg", quality=quality, keep_rgb=True)
        yield "JPEGs of red, green and blue", np.array(Image.open(stream).convert("RGB"))
        yield "noise", rng.integers(0, 256, (128 + number, 160, 3), dtype=np.uint8)
        drawn = Image.linear_gradient("L").rotate(9 * number + 3).resize((200, 150 + number))
        yield "gradients", np.array(drawn.convert("RGB"))


def enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def false_alarms(paths: list[Path]) -> tuple[list[list[str]], float]:
    """Rows of: what images without a JPEG are, and in how many one is found; and the mean seconds of one."""
    found, seconds = {}, []
    for kind, pixels in never_jpegs(paths):
        start = time.process_time()
        found.setdefault(kind, []).append(estimate_history(pixels) is not None)
        seconds.append(time.process_time() - start)
    return [[kind, share(alarms)] for kind, alarms in found.items()], float(np.mean(seconds))


def evenly(items: list, count: int) -> list:
    """So many of them, from the first to the last."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def pictures_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder with a folder of images for each set")
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="more folders, for false alarms alone")
    parser.add_argument("--most-clean", type=int, default=1000, help="about so many images for false alarms (1000)")
    parser.add_argument("--limit", type=int, default=4, help="images of each set that are compressed (4)")
    parser.add_argument("--restored", type=int, default=4, help="how many of all these are restored (4)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "history")
    arguments = parser.parse_args()
    sets = [pictures_of(path) for path in sorted(arguments.pictures.iterdir()) if path.is_dir()]
    clean = [path for paths in (*sets, *map(pictures_of, arguments.clean)) for path in paths]

    alarms, seconds = false_alarms(evenly(clean, arguments.most_clean // 2))
    print(f"images that show no JPEG: {alarms}", flush=True)

    chosen = [[Image.open(path).convert("RGB") for path in evenly(paths, arguments.limit)] for paths in sets]
    images = [image for each in chosen for image in each]
    found = detection(images, lambda line: print(line, flush=True))
    large = np.tile(decode(encode(images[0], 50)), (12, 16, 1))
    start = time.process_time()
    estimate_history(large)
    large_seconds = time.process_time() - start
    saved = evenly(images, 5)
    again, lost_again = second_saves(saved), second_losses(saved)
    lost = losses(evenly(images, arguments.restored))
    shot = "Left out: this needs chromium and the extra browser."
    if shutil.which("chromium") and find_spec("playwright"):
        heading = ["QF", "screenshots", "all right", "rectangle exact", "pixels changed outside"]
        shot = markdown([[*heading, "JPEG", "its file", "the screenshot"], *screenshots(images)])

    heads = ["Decoder", "chroma", "size", *(f"QF {quality}" for quality in QUALITIES)]
    first = [*(f"first {quality}" for quality in FIRST_QUALITIES), "none"]
    from_which = ["first QF", "second QF", "shift", "images", "second file", "the first's restored"]
    from_which += ["the second's, as it is", "as the first"]
    measured = ["QF", "images", "JPEG", "its file", "its pixels", "its file, crop alone", "pixels of a crop"]
    text = page_of(
        "history",
        fingerprint(DDRMJPEGPipeline.from_embedded().unet),
        limit=arguments.limit,
        restored=arguments.restored,
        most_clean=arguments.most_clean,
        images=len(images),
        found=markdown([heads, *found]),
        alarms=markdown([["what they are", "a JPEG is found"], *alarms]),
        seconds=f"{seconds:.2f}",
        megapixels=f"{large.shape[0] * large.shape[1] / 1e6:.1f}",
        large_seconds=f"{large_seconds:.1f}",
        saved=len(saved),
        again=markdown([["second QF", "shift", *first], *again]),
        lost_again=markdown([from_which, *lost_again]),
        lost=markdown([measured, *lost]),
        shots=shot,
    )
    print(text)
    write(arguments.output.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
