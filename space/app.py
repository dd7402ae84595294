"""The Space: drop a JPEG on the page, see what its file says, restore it, compare, download."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import gradio as gr
import show
from compute import PIPE, PRIOR, run  # before what imports torch
from diffusers.image_processor import VaeImageProcessor
from gate import MAX_STATES, WORK, Page, checked
from gradio.context import LocalContext
from limits import (
    CONCURRENCY,
    KEEP_MINUTES,
    MAX_BYTES,
    MAX_MEGABYTES,
    MAX_MEGAPIXELS,
    MAX_WAITING,
    read_jpeg,
    read_picture,
    refusal,
    refusals,
)
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import PRESETS, JPEGFile, QuantizationOperator
from pipeline_ddrm_jpeg.files import save_image
from pipeline_ddrm_jpeg.pipeline import CORRECTIONS
from pipeline_ddrm_jpeg.scheduling_ddrm import TIMESTEP_SPACINGS

HERE = Path(__file__).parent

# --- What is being worked at: by session, the files that are there as long as the work is to go on ---

RUNNING: dict[str, set[Path]] = {}
_FOLDER = TemporaryDirectory(prefix="ddrm-jpeg-space-")


@contextmanager
def job(request: gr.Request) -> Iterator[Path]:
    """The file that is there as long as the work is to go on."""
    go = Path(_FOLDER.name, uuid4().hex)
    go.touch()
    RUNNING.setdefault(request.session_hash, set()).add(go)
    try:
        if not demo._queue.is_wanted(LocalContext.event_id.get()):  # cancelled before it was known here
            raise refusal("Cancelled")
        yield go
    finally:
        go.unlink(missing_ok=True)
        RUNNING[request.session_hash].discard(go)
        if not RUNNING[request.session_hash]:
            del RUNNING[request.session_hash]


async def leave(request: gr.Request) -> None:
    """End what a session waits for or has running."""
    await demo._queue.give_up(request.session_hash)
    for go in list(RUNNING.get(request.session_hash, ())):
        go.unlink(missing_ok=True)


async def cancel(request: gr.Request) -> list:
    await leave(request)
    return ['<p class="hint" role="status">Cancelled.</p>', *busy(False)]


def ended(request: gr.Request) -> list:
    """Why there is no picture. The sentence stays on the page when the note that gradio shows has gone.

    To gradio what is cancelled has failed, too, but then the queue knows of no refusal and all has been said.
    """
    sentence = demo._queue.refused.pop(request.session_hash, None)
    if sentence is None:
        return [gr.skip()] * (1 + len(buttons))
    return [show.refused(sentence), *busy(False)]


def busy(working: bool) -> list:
    """The buttons that start, and the one that cancels."""
    return [*(gr.Button(interactive=not working) for _ in start_buttons), gr.Button(visible=working)]


# --- The work of the three tabs ---

PRIOR_NAME = Path(PRIOR).name if PRIOR and Path(PRIOR).is_dir() else PRIOR  # no path of this server
PICTURES = VaeImageProcessor(vae_scale_factor=1)  # PIL pictures to tensors in [-1, 1], and back
HINT = '<p class="hint">The restored picture will appear here.</p>'


def clear() -> tuple:
    """The result of an earlier file goes."""
    return HINT, "", gr.DownloadButton(visible=False), "", gr.Accordion(visible=False), ""


def inspect(path: str | None) -> tuple:
    """What the file says, or what is wrong with it; a restoration that was faster keeps its place."""
    if path is None:
        return gr.skip(), ""
    try:
        with refusals(path):
            return gr.skip(), show.facts(read_jpeg(path)[0])
    except gr.Error as error:
        return show.refused(error.message), ""


def restore(
    path: str,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> dict:
    """Restore a JPEG file."""
    start, settings = time.monotonic(), call_arguments(settings)
    with job(request) as go, refusals(path):
        progress(0, desc="Reading the file")
        file, before = read_jpeg(path)
        result = run(file, None, settings, seed, go, progress)
        name = f"{Path(path).stem}_restored.png"
        count = sum(plane.size for plane in file.coefficients)
        verdict = show.verdict(result.consistency_8bit[0], f"file's {count:,} coefficients", time.monotonic() - start)
        code = show.snippet(show.RESTORE, PRIOR_NAME, settings, show.task(file.name, name, seed))
        return present(result, {"JPEG": before}, name, verdict, code) | {facts: show.facts(file)}


def explore(
    path: str,
    quality: int,
    subsampling: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> dict:
    """Compress a clean picture to a JPEG file, and restore that."""
    start, settings = time.monotonic(), call_arguments(settings)
    with job(request) as go, refusals(path):
        clean, name, code = read_picture(path, longest)
        stream = io.BytesIO()
        stream.name = f"{Path(name).stem}_q{quality}.jpg"
        options = {"quality": quality} | ({"subsampling": subsampling} if clean.mode == "RGB" else {})
        clean.save(stream, "JPEG", **options)
        stream.seek(0)
        file = JPEGFile.open(stream)
        result = run(file, None, settings, seed, go, progress)
        before = Image.open(stream)
        after = ImageOps.exif_transpose(result.images[0])
        name = f"{Path(name).stem}_q{quality}_restored.png"
        verdict = show.verdict(result.consistency_8bit[0], "JPEG's coefficients", time.monotonic() - start)
        verdict += show.numbers(clean, {"JPEG": before, "restored": after})
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        code += f"picture.save({file.name!r}{arguments})\n"
        code += show.task(file.name, name, seed)
        code = show.snippet(show.EXPLORE, PRIOR_NAME, settings, code)
        return present(result, {"JPEG": before, "original": clean}, name, verdict, code) | {facts: show.facts(file)}


def dequantize(
    path: str,
    bits: int,
    reconstruction: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> dict:
    """Keep a few bits of each channel of a clean picture, and restore that."""
    start, settings = time.monotonic(), call_arguments(settings)
    with job(request) as go, refusals(path):
        clean, name, code = read_picture(path, longest)
        operator = QuantizationOperator(bits, reconstruction)
        result = run(clean, operator, settings, seed, go, progress)
        tensor = PICTURES.preprocess(clean.convert("RGB"))
        (before,) = PICTURES.postprocess(operator.decode(operator.encode(tensor)))
        name = f"{Path(name).stem}_{bits}bit_restored.png"
        verdict = show.verdict(result.consistency_8bit[0], "measured levels", time.monotonic() - start)
        verdict += show.numbers(clean, {"quantized": before, "restored": result.images[0]})
        code += (
            f"operator = QuantizationOperator(bits={bits}, reconstruction={reconstruction!r})\n"
            f"generator = torch.Generator().manual_seed({seed})\n"
            "result = pipe(picture, operator=operator, generator=generator, **settings)\n"
            f"save_image(result.images[0], {name!r})\n"
        )
        code = show.snippet(show.DEQUANTIZE, PRIOR_NAME, settings, code)
        return present(result, {"quantized": before, "original": clean}, name, verdict, code) | {facts: ""}


def present(result: Any, left: dict[str, Image.Image], name: str, verdict: str, code: str) -> dict:
    """Fill the right side of the page; the pictures go to where gradio serves and later deletes them.

    Args:
        result: output of the pipeline.
        left: pictures to compare the restored one with, by what they are called.
        name: file name of the restored picture.
        verdict: HTML that stands above them.
        code: Python that makes the same picture.
    """
    folder = Path(demo.GRADIO_CACHE, uuid4().hex)
    image, samples = result.images[0], len(result.samples[0])
    upright = ImageOps.exif_transpose(image)
    save_image(upright, folder / name)
    pictures = dict(left)
    if samples > 1:
        pictures["deviation"], legend = show.heat_map(result.std[0], image)
    for label, picture in pictures.items():  # with the profile of the restored one, or colours would seem to differ
        picture.save(folder / f"{label}.png", compress_level=1, icc_profile=image.info.get("icc_profile"))
    address = {path.name: f"gradio_api/file={quote(str(path))}" for path in folder.iterdir()}
    return {
        status: verdict,
        view: show.comparison({label: address[f"{label}.png"] for label in left}, address[name], upright.width),
        download: gr.DownloadButton(value=folder / name, visible=True),
        deviation: show.deviation(address["deviation.png"], legend, samples) if samples > 1 else "",
        code_box: gr.Accordion(visible=True),
        code_panel: code,
    }


# --- Settings, presets, and the address that holds them ---

DEFAULT_PRESET = "fast"
PRESET_LABELS = {"paper": "paper (S)", "paper-average": "paper (A)"}
DEFAULTS = {
    **{name: PIPE.scheduler.config[name] for name in ("timestep_spacing", "eta", "eta_b")},
    "temperature": 1.0,
    "antithetic": False,
    "correction": "ddrm",
    "consistent": False,
}
AUTO = 0  # what the slider of init_timestep says for "auto"


def values_of(preset: str) -> list:
    """The settings of a preset, as the controls of the page hold them, in their order."""
    values = DEFAULTS | PRESETS[preset]
    return [AUTO if values[name] == "auto" else values[name] for name in settings]


def call_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """The settings as the pipeline's call takes them."""
    return values | ({"init_timestep": "auto"} if values["init_timestep"] == AUTO else {})


def preset_of(*values: Any) -> str | None:
    """The preset with these settings, if there is one."""
    return next((name for name in PRESETS if values_of(name) == list(values)), None)


def from_address(request: gr.Request) -> list:
    """Preset, settings and seed as the query of the page's address has them."""
    query = dict(request.query_params)
    chosen = query.get("preset", DEFAULT_PRESET)
    if chosen not in PRESETS:
        gr.Warning(f"The address asks for a preset that is not there; there are {', '.join(PRESETS)}.")
        chosen = DEFAULT_PRESET
    values = dict(zip(settings, values_of(chosen), strict=True)) | {"seed": 0}
    for name, component in (settings | {"seed": seed}).items():
        if name not in query:
            continue
        try:
            text = query[name]
            if isinstance(component, gr.Checkbox):
                text = {"true": True, "false": False}[text]
            elif not isinstance(component, gr.Radio):
                text = float(text)
            values[name] = checked(component, text)
        except (gr.Error, LookupError, ValueError, OverflowError):
            gr.Warning(f"The address gives a value of {name} that does not fit; it is left at {values[name]}.")
    *chosen_settings, chosen_seed = values.values()
    return [preset_of(*chosen_settings), *chosen_settings, chosen_seed]


TO_ADDRESS = """(preset, ...values) => {
  const names = %s, seed = values[names.length];
  const own = preset ? [["preset", preset]] : names.map((name, i) => [name, values[i]]);
  const query = new URLSearchParams([...own, ["seed", seed]]).toString();
  history.replaceState(null, "", "?" + query);
  if (window.parent !== window) window.parent.postMessage({queryString: query}, "https://huggingface.co");
}"""

# On a phone the progress lies below what is seen.
SHOW_STATUS = """() => {
  document.querySelector("#status").scrollIntoView({block: "nearest"});
  return [];
}"""

# --- The page ---

EXAMPLES = {
    "cat.jpg": "Cat, quality 10",
    "cat-crushed.jpg": "Cat, quality 5",
    "cameraman.jpg": "Cameraman, grey",
    "galaxies.jpg": "Galaxies, progressive",
    "cat.png": "Cat",
    "cameraman.png": "Cameraman",
    "galaxies.png": "Galaxies",
}


def upload(label: str, placeholder: str, suffix: str) -> gr.Image:
    """An upload that hands over the path of the bytes as they came, and below it the examples for it."""
    image = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=300,
        buttons=[],
        placeholder=placeholder,
    )
    # Its own would open the file, and of a broken one would say only where on the server it lies.
    image.preprocess = lambda payload: None if payload is None else payload.path
    with gr.Row(elem_classes="examples"):
        for name, title in EXAMPLES.items():
            file = HERE / "examples" / name
            if file.suffix == suffix and file.is_file():
                example = gr.Button(title, icon=file, size="sm", min_width=0)
                example.keep_in_cache.update(example.temp_files)  # or the picture on it would be deleted, too
                example.click(lambda file=file: str(file), None, image, **QUIET)
    return image


def longer_side() -> gr.Radio:
    return gr.Radio(
        [("256", 256), ("512", 512), ("1024", 1024), ("as it is", 0)],
        value=256,
        label="Longer side in pixels",
        info="A larger picture is made smaller first.",
    )


QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {"queue": True, "concurrency_limit": None}  # what has something to say goes through the queue

with Page(title="DDRM-JPEG", analytics_enabled=False) as demo:
    gr.HTML(
        "<h1>DDRM-JPEG</h1><p>Restores pictures that JPEG has ruined, and keeps to what their files say.</p>",
        elem_id="title",
    )
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=5, min_width=320):
            with gr.Tabs():
                with gr.Tab("Restore") as restore_tab:
                    jpeg = upload("JPEG file", "# Drop a JPEG here\nor choose one, or paste a file", ".jpg")
                with gr.Tab("Explore") as explore_tab:
                    clean = upload("Clean picture", "# Drop a clean picture here\nof any format", ".png")
                    quality = gr.Slider(1, 100, 10, step=1, label="Quality factor")
                    subsampling = gr.Radio(["4:4:4", "4:2:2", "4:2:0"], value="4:2:0", label="Chroma subsampling")
                    explore_side = longer_side()
                with gr.Tab("Dequantize") as dequantize_tab:
                    deep = upload("Clean picture", "# Drop a clean picture here\nof any format", ".png")
                    bits = gr.Slider(1, 7, 3, step=1, label="Bits a channel", info="3 are the paper's 9 bits a colour.")
                    reconstruction = gr.Radio(["left", "center"], value="left", label="A level decodes to its bin's")
                    dequantize_side = longer_side()
            preset = gr.Radio(
                [(PRESET_LABELS.get(name, name), name) for name in PRESETS], value=DEFAULT_PRESET, label="Preset"
            )
            start_button = {"variant": "primary", "size": "lg", "interactive": False}  # until the address has been read
            with gr.Row():
                start_buttons = [
                    gr.Button("Restore", **start_button),
                    gr.Button("Compress, then restore", **start_button, visible=False),
                    gr.Button("Quantize, then restore", **start_button, visible=False),
                ]
                cancel_button = gr.Button("Cancel", size="lg", visible=False)
            with gr.Accordion("Settings", open=False):
                settings = {
                    "num_samples": gr.Slider(
                        1, 16, step=1, info='Independent samples to average; 1 is the paper\'s "(S)", 8 its "(A)".'
                    ),
                    "num_inference_steps": gr.Slider(1, 100, step=1, info="Network evaluations in a sample."),
                    "init_timestep": gr.Slider(
                        AUTO,
                        len(PIPE.scheduler),
                        step=1,
                        info="Where sampling starts, from the noised measurement; 0: as the file's tables ask for.",
                    ),
                    "timestep_spacing": gr.Radio([*TIMESTEP_SPACINGS], info="Uniform, or denser near the end."),
                    "eta": gr.Slider(0, 1, step=0.05, info="Weight of fresh against predicted noise."),
                    "eta_b": gr.Slider(0, 1, step=0.05, info="Weight of the corrected picture at every step."),
                    "temperature": gr.Slider(0, 1, step=0.05, info="Scale of the fresh noise."),
                    "antithetic": gr.Checkbox(info="Samples in pairs, the second with the noise of the first negated."),
                    "correction": gr.Radio(
                        [*CORRECTIONS], info="How a picture is made to agree with the file at every step."
                    ),
                    "consistent": gr.Checkbox(info="Project the result onto what the file says."),
                }
                for (name, component), value in zip(settings.items(), values_of(DEFAULT_PRESET), strict=True):
                    component.label, component.value = name, value
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**53 - 1)
                gr.HTML('<p class="note">The address of this page holds these settings; copy it to share them.</p>')
        with gr.Column(scale=7, min_width=320):
            # The labels are not shown; they name the outputs of the API.
            status = gr.HTML(HINT, elem_id="status", label="Verdict, as HTML")
            view = gr.HTML(elem_id="view", label="Comparison, as HTML")
            download = gr.DownloadButton("Download PNG", visible=False, elem_id="download")
            deviation = gr.HTML(elem_id="deviation", label="Where the samples differ, as HTML")
            facts = gr.HTML(elem_id="facts", label="What the file says, as HTML")
            with gr.Accordion("The same in Python", open=False, visible=False, elem_id="python") as code_box:
                code_panel = gr.Code(language="python", interactive=False, label="Python", show_line_numbers=False)
    gr.HTML(
        f'<p class="note">At most {MAX_MEGAPIXELS:g} megapixels and {MAX_MEGABYTES:g} MB a picture. Uploads and results'
        f" are deleted after {KEEP_MINUTES:g} minutes. A restored picture is plausible, not evidence.</p>",
        elem_classes="foot",
    )

    outputs = [status, view, download, deviation, facts, code_box, code_panel]
    buttons = [*start_buttons, cancel_button]
    runs = []
    for button, tab, work, inputs in (
        (start_buttons[0], restore_tab, restore, [jpeg]),
        (start_buttons[1], explore_tab, explore, [clean, quality, subsampling, explore_side]),
        (start_buttons[2], dequantize_tab, dequantize, [deep, bits, reconstruction, dequantize_side]),
    ):
        tab.select(
            lambda which=button: [gr.Button(visible=one is which) for one in start_buttons],
            None,
            start_buttons,
            **QUIET,
        )
        started = button.click(lambda: busy(True), None, buttons, js=SHOW_STATUS, **QUIET)
        work_event = started.success(
            work,
            inputs,
            outputs,
            inputs_kwargs={**settings, "seed": seed},
            show_progress_on=status,
            concurrency_limit=CONCURRENCY,
            concurrency_id=WORK,
            api_name=work.__name__,
        )
        work_event.success(lambda: busy(False), None, buttons, **QUIET)
        work_event.failure(ended, None, [status, *buttons], **QUIET)
        runs.append(work_event)
    cancel_button.click(cancel, None, [status, *buttons], cancels=runs, **QUIET)
    demo.unload(leave)
    jpeg.change(clear, None, [status, view, download, deviation, code_box, facts], **QUIET).then(
        inspect,
        jpeg,
        [status, facts],
        show_progress="hidden",
        concurrency_limit=4,
        concurrency_id="inspect",
        api_visibility="private",
    )

    to_address = {
        "fn": None,
        "inputs": [preset, *settings.values(), seed],
        "js": TO_ADDRESS % list(settings),
        "api_visibility": "private",
    }
    preset.input(values_of, preset, list(settings.values()), **QUIET).then(**to_address)
    gr.on(
        [component.input for component in settings.values()], preset_of, list(settings.values()), preset, **QUIET
    ).then(**to_address)
    seed.input(**to_address)
    demo.load(from_address, None, [preset, *settings.values(), seed], **(QUIET | AT_ONCE)).then(
        lambda: busy(False), None, buttons, **QUIET
    )


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("space").setLevel(logging.INFO)
    demo.queue(max_size=10 * MAX_WAITING, default_concurrency_limit=None, api_open=False)
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
        font_mono=["ui-monospace", "monospace"],
    ).set(  # of the default theme, these are too pale to read
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        color_accent="*primary_700",
        checkbox_background_color_selected_dark="*primary_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    demo.launch(
        theme=theme,
        css_paths=HERE / "style.css",
        max_file_size=MAX_BYTES,
        footer_links=["api", "gradio"],
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=MAX_STATES,
        app_kwargs=demo.app_kwargs(),
    )


if __name__ == "__main__":
    main()
