"""The page: what stands where, and which listener answers to what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import presentation
import torch
import work
from address import BESIDE, SETTINGS, TO_QUERY, from_query, preset_of, values_of
from gate import INSPECT, WORK, Page
from limits import (
    CONCURRENCY,
    KEEP_MINUTES,
    MAX_MEGABYTES,
    MAX_MEGAPIXELS,
    Damaged,
    NoTraces,
    read_source,
    refusals,
)
from work import AUTO, PIPE

from pipeline_ddrm_jpeg import PRESETS
from pipeline_ddrm_jpeg.decoded.image import DecodedJPEG
from pipeline_ddrm_jpeg.jpeg.tables import WRITTEN_SUBSAMPLINGS
from pipeline_ddrm_jpeg.sampling.settings import ABOUT, DEFAULT, About

_EXAMPLES = Path(__file__).parent / "examples"
EXAMPLES = {
    "cat.jpg": "Face of a cat",
    "lettering.jpg": "Text and lines",
    "cameraman.jpg": "Field, in grey",
    "galaxies.jpg": "Night sky",
    "cat.png": "Face of a cat",
    "lettering.png": "Text and lines",
    "cameraman.png": "Field, in grey",
    "galaxies.png": "Night sky",
}
_COMPARE = (Path(__file__).parent / "compare.js").read_text()
_SHOWN = "cat.jpg"  # restored before anybody comes
_INSPECTIONS = 2  # at once, each on a processor
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_AT_ONCE = {"queue": True, "concurrency_limit": None}  # what has something to say goes through the queue

# On a phone the progress lies below what is seen.
_SHOW_STATUS = """() => {
  document.querySelector("#status").scrollIntoView({block: "nearest"});
  return [];
}"""


@dataclass
class Source:
    """A tab: what is restored there, and the button that starts it."""

    tab: gr.Tab
    button: gr.Button
    work: Callable[..., Iterator[list]]
    inputs: list
    by_hand: gr.Column | None = None
    """What somebody may say of an image whose file is gone."""


@dataclass
class Results:
    """The right side, as `presentation.results` fills it."""

    status: gr.HTML
    download: gr.DownloadButton
    view: gr.HTML
    deviation: gr.HTML
    facts: gr.HTML
    code_box: gr.Accordion
    code: gr.Code

    @property
    def components(self) -> list:
        return list(vars(self).values())


def build() -> Page:
    """The page, to be queued and launched."""
    shown = work.example(_EXAMPLES / _SHOWN, PRESETS[DEFAULT])
    with Page(title="DDRM-JPEG", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>DDRM-JPEG</h1><p>Restores images that JPEG has ruined, and keeps to what their files say."
            ' <a href="https://arxiv.org/abs/2209.11888">The paper</a></p>',
            elem_id="title",
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                sources = _sources()
                preset = gr.Radio(
                    _choices(256, 256), value=DEFAULT, label="Preset", elem_id="preset", interactive=False
                )
                controls = _controls()
                controls["sharpness"].render()
                with gr.Row():
                    for source in sources:
                        source.button.render()
                    cancel = gr.Button("Cancel", size="lg", visible=False)
                with gr.Accordion("Settings", open=False):
                    for name in (*SETTINGS, "seed"):
                        controls[name].render()
                    gr.HTML('<p class="note">The address of this page holds these settings; copy it to share them.</p>')
            with gr.Column(scale=7, min_width=320):
                results = _results(shown)
        gr.HTML(
            f'<p class="note">At most {MAX_MEGAPIXELS:g} megapixels and {MAX_MEGABYTES:g} MB an image. Uploads and'
            f" results are deleted after {KEEP_MINUTES:g} minutes. A restored image is plausible, not evidence.</p>",
            elem_classes="foot",
        )
        buttons = [*(source.button for source in sources), cancel]
        _connect_uploads(sources, preset, results)
        _connect_work(page, sources, controls, results, buttons)
        _connect_settings(page, preset, controls, buttons)
    return page


# --- What stands where ---


def _choices(width: int, height: int) -> list[tuple[str, str]]:
    """The presets, with the time that each takes for an image of this size."""
    return presentation.preset_choices({name: work.estimate(PRESETS[name], width, height) for name in PRESETS})


def _sources() -> list[Source]:
    with gr.Tabs():
        with gr.Tab("Restore") as restore_tab:
            jpeg = _upload("JPEG file", "# Drop a JPEG here\nor an image that was one, of any format", ".jpg")
            repair = gr.Checkbox(
                label="repair", info="What is left of the file stays exact; what is lost is made up.", visible=False
            )
            double_compression = gr.Checkbox(
                label="the earlier JPEG",
                info="Its pixels show that it was saved before, and coarser: restore that.",
                visible=False,
            )
            with gr.Column(visible=False) as by_hand:
                quality = gr.Slider(
                    0,
                    100,
                    0,
                    step=1,
                    label="Quality factor of its JPEG",
                    info="0: as its pixels show. Where they show nothing, a guess: the coarser, the smoother.",
                )
                subsampling = gr.Radio(
                    WRITTEN_SUBSAMPLINGS, value="4:2:0", label="Chroma subsampling, where you say the quality"
                )
        with gr.Tab("Several") as several_tab:
            files = gr.File(label="JPEG files", file_count="multiple", height=300)
            files.preprocess = lambda payload: payload and [file.path for file in payload]  # as in _upload
        with gr.Tab("Explore") as explore_tab:
            explored = _upload("Clean image", "# Drop a clean image here\nof any format", ".png")
            explored_quality = gr.Slider(1, 100, 10, step=1, label="Quality factor")
            explored_chroma = gr.Radio(WRITTEN_SUBSAMPLINGS, value="4:2:0", label="Chroma subsampling")
            explored_side = _longer_side()
        with gr.Tab("Dequantize") as dequantize_tab:
            quantized = _upload("Clean image", "# Drop a clean image here\nof any format", ".png")
            bits = gr.Slider(1, 7, 3, step=1, label="Bits a channel", info="3 are the paper's 9 bits a colour.")
            reconstruction = gr.Radio(["left", "center"], value="left", label="A level decodes to its bin's")
            quantized_side = _longer_side()
    start = {"variant": "primary", "size": "lg", "interactive": False, "render": False}  # until the address was read
    return [
        Source(
            restore_tab,
            gr.Button("Restore", **start),
            work.restore,
            [jpeg, repair, double_compression, quality, subsampling],
            by_hand,
        ),
        Source(several_tab, gr.Button("Restore all", **start, visible=False), work.several, [files]),
        Source(
            explore_tab,
            gr.Button("Compress, then restore", **start, visible=False),
            work.explore,
            [explored, explored_quality, explored_chroma, explored_side],
        ),
        Source(
            dequantize_tab,
            gr.Button("Quantize, then restore", **start, visible=False),
            work.dequantize,
            [quantized, bits, reconstruction, quantized_side],
        ),
    ]


def _upload(label: str, placeholder: str, suffix: str) -> gr.Image:
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
            file = _EXAMPLES / name
            if file.suffix == suffix and file.is_file():
                example = gr.Button(title, icon=file, size="sm", min_width=0)
                example.keep_in_cache.update(example.temp_files)  # or the image on it would be deleted, too
                example.click(lambda file=file: str(file), None, image, **_QUIET)
    return image


def _longer_side() -> gr.Radio:
    return gr.Radio(
        [("256", 256), ("512", 512), ("1024", 1024), ("as it is", 0)],
        value=256,
        label="Longer side in pixels",
        info="A larger image is made smaller first.",
    )


def _controls() -> dict[str, Any]:
    """What a restoration takes besides its image, by name; none can be changed until the address was read."""
    still = {"interactive": False, "render": False}
    controls = {name: _control(name, ABOUT[name]) for name in (*SETTINGS, *BESIDE)}
    for name, value in zip(SETTINGS, values_of(DEFAULT), strict=True):
        controls[name].value = value
    return controls | {"seed": gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**53 - 1, **still)}


def _control(name: str, about: About) -> Any:
    """What holds a setting."""
    shown = {"label": f"{about.label} ({name})", "info": about.words, "interactive": False, "render": False}
    if name == "init_timestep":
        shown["info"] = "How much noise sampling starts from; 0: as the file's tables ask for."
        return gr.Slider(AUTO, len(PIPE.scheduler), step=1, **shown)
    if about.choices:
        known = [one for one in about.choices if one != "posterior" or "eta_b" in SETTINGS]
        return gr.Radio(known, **shown)
    if about.least is None:
        return gr.Checkbox(**shown)
    if name == "temperature":
        return gr.Number(minimum=about.least, maximum=about.most, step=about.step, placeholder=about.unset, **shown)
    return gr.Slider(about.least, about.shown or about.most, 0, step=about.step, **shown)


def _results(shown: tuple[list, Path] | None) -> Results:
    """The right side, with an example if there is one."""
    values, image = shown or (presentation.results(), None)
    # The labels are not shown; they name the outputs of the API.
    status = gr.HTML(values[0], elem_id="status", label="Verdict, as HTML")
    view = gr.HTML(values[2], elem_id="view", label="Comparison, as HTML", js_on_load=_COMPARE)
    if image:
        view.keep_in_cache.add(str(image))
    download = gr.DownloadButton("Download", visible=False, elem_id="download")
    deviation = gr.HTML(elem_id="deviation", label="How far off it may be, as HTML")
    facts = gr.HTML(values[4], elem_id="facts", label="What the file says, as HTML")
    with gr.Accordion("The same in Python", open=False, visible=False, elem_id="python") as code_box:
        code = gr.Code(language="python", interactive=False, label="Python", show_line_numbers=False)
        if PIPE.device.type == "cpu":
            gr.HTML(
                f'<p class="note">The same bytes where torch has as many threads as here:'
                f" <code>torch.set_num_threads({torch.get_num_threads()})</code>.</p>"
            )
    return Results(status, download, view, deviation, facts, code_box, code)


# --- Which listener answers to what ---


def _busy(buttons: list[gr.Button], working: bool) -> list:
    """The buttons that start, and the one that cancels."""
    return [*(gr.Button(interactive=not working) for _ in buttons[:-1]), gr.Button(visible=working)]


def _connect_uploads(sources: list[Source], preset: gr.Radio, results: Results) -> None:
    """Clear an old result as soon as another image is chosen, and say what there is to say about a JPEG file.

    The first is done in the browser, and the second is said in a place of its own, so that no answer that comes late
    hides how a restoration ended.
    """

    def inspect(path: str | None, repair: bool, double_compression: bool, quality: int, subsampling: str) -> list:
        said, times, damaged, lost = "", gr.skip(), False, False
        if path is not None:
            try:
                with refusals(path):
                    assumed = work.what_is_assumed(double_compression, quality, subsampling)
                    opened = read_source(path, repair, assumed)
                    file = opened.file
                    times = gr.Radio(_choices(*work.restored_size(file)))
                    damaged, lost = bool(file.damage), isinstance(file, DecodedJPEG) and not file.double_compression
                    double_compression = double_compression or opened.earlier is not None
                    said = presentation.facts(opened, Path(path).name)
            except gr.Error as error:
                said = presentation.refused(error.message)
                damaged, lost = isinstance(error, Damaged), isinstance(error, NoTraces)
        shown = (gr.Checkbox(visible=damaged), gr.Checkbox(visible=double_compression), gr.Column(visible=lost))
        return [said, times, *shown]

    images = [source.inputs[0] for source in sources]
    jpeg, repair, double_compression, quality, subsampling = sources[0].inputs
    gr.on(
        [image.change for image in images],
        None,
        None,
        results.components,
        js=presentation.CLEARED,
        api_visibility="private",
    )
    inspected = {
        "fn": inspect,
        "inputs": sources[0].inputs,
        "outputs": [results.facts, preset, repair, double_compression, sources[0].by_hand],
        "show_progress": "hidden",
        "concurrency_limit": _INSPECTIONS,
        "concurrency_id": INSPECT,
        "api_visibility": "private",
    }
    # The next file may show no earlier JPEG: what was said of the last is taken back, and not asked for either.
    jpeg.change(None, None, double_compression, js="() => false", api_visibility="private")
    jpeg.change(**inspected, js="(path, repair, _, ...said) => [path, repair, false, ...said]")
    gr.on([repair.input, double_compression.input, quality.release, subsampling.input], **inspected)


def _connect_work(
    page: Page,
    sources: list[Source],
    controls: dict[str, Any],
    results: Results,
    buttons: list[gr.Button],
) -> None:
    *start_buttons, cancel = buttons

    async def cancelled(request: gr.Request) -> list:
        await work.leave(request)
        return ['<p class="hint" role="status">Cancelled.</p>', "", *_busy(buttons, False)]

    def ended(request: gr.Request) -> list:
        """Why there is no image. The sentence stays on the page when the note that gradio shows has gone.

        To gradio what is cancelled has failed, too, but then the queue knows of no refusal and all has been said.
        """
        sentence = page._queue.refused.pop(request.session_hash, None)
        if sentence is None:
            return [gr.skip()] * (len(results.components) + len(buttons))
        return [*presentation.results(presentation.refused(sentence)), *_busy(buttons, False)]

    runs = []
    for source in sources:
        source.tab.select(
            lambda which=source.button: [gr.Button(visible=one is which) for one in start_buttons],
            None,
            start_buttons,
            **_QUIET,
        )
        started = source.button.click(lambda: _busy(buttons, True), None, buttons, js=_SHOW_STATUS, **_QUIET)
        run = started.success(
            source.work,
            source.inputs,
            results.components,
            inputs_kwargs=controls,
            show_progress_on=results.status,
            concurrency_limit=CONCURRENCY,
            concurrency_id=WORK,
            api_name=source.work.__name__,
            api_visibility="private" if source.work is work.several else "public",
        )
        run.success(lambda: _busy(buttons, False), None, buttons, **_QUIET)
        run.failure(ended, None, [*results.components, *buttons], **_QUIET)
        runs.append(run)
    cancel.click(cancelled, None, [results.status, results.view, *buttons], cancels=runs, api_name="cancel", **_QUIET)
    page.unload(work.leave)


def _connect_settings(page: Page, preset: gr.Radio, controls: dict[str, Any], buttons: list[gr.Button]) -> None:
    settings = [controls[name] for name in SETTINGS]
    everything = [preset, *controls.values()]
    to_query = {"fn": None, "inputs": everything, "js": TO_QUERY % list(SETTINGS), "api_visibility": "private"}
    preset.input(values_of, preset, settings, **_QUIET).then(**to_query)
    gr.on([control.input for control in settings], preset_of, settings, preset, **_QUIET).then(**to_query)
    gr.on([controls["sharpness"].input, controls["seed"].input], **to_query)

    def read(request: gr.Request) -> list:
        values = from_query(dict(request.query_params), controls)
        return [gr.update(value=value, interactive=True) for value in values]

    page.load(read, None, everything, **(_QUIET | _AT_ONCE)).then(
        lambda: _busy(buttons, False), None, buttons, **_QUIET
    )
