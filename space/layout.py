"""The page: what stands where, and which listener answers to what."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import gradio as gr
import presentation
import torch
import work
from address import BESIDE, SETTINGS, TO_QUERY, from_query, marked, values_of
from gate import INSPECT, UPLOADS, WORK, Page
from limits import (
    CONCURRENCY,
    KEEP_MINUTES,
    MAX_FILES,
    MAX_MEGABYTES,
    MAX_MEGAPIXELS,
    Damaged,
    NoTraces,
    read_source,
    refusals,
)
from work import AUTO, PIPE

import pipeline_ddrm_jpeg
from pipeline_ddrm_jpeg import PRESETS
from pipeline_ddrm_jpeg.decoded.image import DecodedJPEG
from pipeline_ddrm_jpeg.jpeg.tables import WRITTEN_SUBSAMPLINGS
from pipeline_ddrm_jpeg.priors import EMBEDDED
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
_SHOWN = "cat.jpg"  # restored before anybody comes
_INSPECTIONS = 2  # at once, each on a processor
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_AT_ONCE = {"queue": True, "concurrency_limit": None}  # what has something to say goes through the queue

_LIMITS = f"up to {MAX_MEGAPIXELS:g} megapixels and {MAX_MEGABYTES:g} MB"
_KEPT = f"Uploads and results are deleted after {KEEP_MINUTES:g} minutes, and used for nothing else."

# Run in the browser, of page.js, with the values of both presets and of all settings.
_BEGIN_IF_READ = """(facts) => facts.includes('class="says"') ? ddrm.press("restore") : ddrm.showRefusal()"""
_BEGIN = "(preset, published, ...values) => ddrm.begin(preset ?? published, values)"


@dataclass
class Source:
    """A tab: what is restored there, and the button that starts it."""

    tab: gr.Tab
    button: gr.Button
    work: Callable[..., Iterator[list]]
    inputs: list
    by_hand: gr.Column | None = None
    """What somebody may say of an image whose file is gone."""
    at_once: bool = True
    """Whether the work begins when an image is chosen."""


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
    formats: gr.HTML

    @property
    def components(self) -> list:
        return list(vars(self).values())

    @property
    def of_work(self) -> list:
        """All but what is said of the file."""
        return [self.status, self.download, self.view, self.deviation, self.formats]


def build() -> Page:
    """The page, to be queued and launched."""
    shown = work.example(_EXAMPLES / _SHOWN, PRESETS[DEFAULT])
    with Page(title="DDRM-JPEG", analytics_enabled=False) as page:
        links, files = _links()
        title = gr.HTML(
            "<h1>DDRM-JPEG</h1><p>Restores images that JPEG has ruined, and keeps to what their files say.</p>"
            f'<p class="links"><a href="https://arxiv.org/abs/2209.11888">Paper</a> {links}</p>'
            '<p class="aloud" role="status"></p>',
            elem_id="title",
        )
        title.keep_in_cache.update(map(str, files))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                sources = _sources()
                preset = gr.Radio(
                    _choices(256, 256),
                    value=DEFAULT,
                    label="Preset",
                    info="The longer it takes, the nearer to the original.",
                    elem_id="preset",
                    interactive=False,
                )
                controls = _controls()
                with gr.Row(elem_id="actions"):
                    for source in sources:
                        source.button.render()
                    cancel = gr.Button("Cancel", size="lg", visible=False)
                with gr.Accordion("Settings", open=False):
                    controls["sharpness"].render()
                    published = gr.Radio(
                        [(label, name) for name, label in presentation.PUBLISHED.items()],
                        label="Preset of the paper",
                        info="As published, for a far larger network.",
                        interactive=False,
                    )
                    for name in (*SETTINGS, "seed"):
                        controls[name].render()
                    gr.HTML('<p class="note">The address of this page holds these settings; copy it to share them.</p>')
            with gr.Column(scale=7, min_width=320):
                results = _results(shown)
        gr.HTML('<p class="note">A restored image is plausible, not evidence.</p>', elem_classes="foot")
        buttons = [*(source.button for source in sources), cancel]
        presets = [preset, published]
        runs = _connect_work(page, sources, presets, controls, results, buttons)
        _connect_uploads(sources, preset, results, buttons, runs)
        _connect_settings(page, presets, controls, buttons)
    return page


# --- What stands where ---


def _choices(width: int, height: int) -> list[tuple[str, str]]:
    """The presets, with the time that each takes for an image of this size."""
    seconds = {name: work.estimate(PRESETS[name], width, height) for name in presentation.PRESETS}
    return presentation.preset_choices(seconds)


def _links() -> tuple[str, list[Path]]:
    """Links to the program and the prior, on the Hub or here, and the files that they lead to."""
    space, here = os.environ.get("SPACE_ID"), UPLOADS / "about"
    here.mkdir(exist_ok=True)
    source = here / "ddrm-jpeg.zip"
    with ZipFile(source, "w", ZIP_DEFLATED) as archive:
        for folder in (Path(__file__).parent, Path(pipeline_ddrm_jpeg.__file__).parent):
            for path in folder.rglob("*.*"):
                if path.suffix in (".py", ".js", ".css", ".md", ".txt"):
                    archive.write(path, path.relative_to(folder.parent))
    links = {"Source": f"https://huggingface.co/spaces/{space}/tree/main" if space else _address(source)}
    card = Path(work.PRIOR or EMBEDDED) / "README.md"
    if card.is_file():
        links["Model"] = _address(shutil.copy(card, here / "model_card.md"))
    elif work.PRIOR:
        links["Model"] = f"https://huggingface.co/{work.PRIOR}"
    return " ".join(f'<a href="{href}">{name}</a>' for name, href in links.items()), list(here.iterdir())


def _address(path: Path) -> str:
    return f"gradio_api/file={path}"


def _sources() -> list[Source]:
    with gr.Tabs():
        with gr.Tab("Restore") as restore_tab:
            jpeg = _upload("Image", ".jpg")
            gr.Textbox(
                label="Address of an image",
                placeholder="or the address of an image, and Enter",
                show_label=False,
                container=False,
                elem_id="address",
            )
            gr.HTML(f'<p class="note">One image, {_LIMITS}. {_KEPT}</p><p role="alert"></p>', elem_id="said")
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
            files = gr.File(label="JPEG files", file_count="multiple", height=220)
            gr.HTML(
                f'<p class="note">At most {MAX_FILES} files, together {MAX_MEGABYTES:g} MB, each up to'
                f" {MAX_MEGAPIXELS:g} megapixels. {_KEPT}</p>"
            )
            files.preprocess = lambda payload: payload and [file.path for file in payload]  # as in _upload
        with gr.Tab("Explore") as explore_tab:
            gr.HTML(
                '<p class="note">To see what JPEG takes from an image, and how much of it comes back: a clean image is'
                " compressed, restored, and measured against itself.</p>"
            )
            explored = _upload("Clean image", ".png")
            explored_quality = gr.Slider(1, 100, 10, step=1, label="Quality factor")
            explored_chroma = gr.Radio(WRITTEN_SUBSAMPLINGS, value="4:2:0", label="Chroma subsampling")
            explored_side = _longer_side()
        with gr.Tab("Dequantize") as dequantize_tab:
            gr.HTML(
                '<p class="note">To see the method without JPEG: a clean image keeps a few bits of each channel, is'
                " restored, and measured against itself.</p>"
            )
            quantized = _upload("Clean image", ".png")
            bits = gr.Slider(1, 7, 3, step=1, label="Bits a channel", info="3 are the paper's 9 bits a colour.")
            reconstruction = gr.Radio(["left", "center"], value="left", label="A level decodes to its bin's")
            quantized_side = _longer_side()
    start = {"variant": "primary", "size": "lg", "render": False, "elem_classes": "start"}
    start["interactive"] = False  # until the address was read
    return [
        Source(
            restore_tab,
            gr.Button("Restore", elem_id="restore", **start),
            work.restore,
            [jpeg, repair, double_compression, quality, subsampling],
            by_hand,
        ),
        Source(several_tab, gr.Button("Restore all", **start, visible=False), work.several, [files], at_once=False),
        Source(
            explore_tab,
            gr.Button("Compress, then restore", elem_id="explore", **start, visible=False),
            work.explore,
            [explored, explored_quality, explored_chroma, explored_side],
        ),
        Source(
            dequantize_tab,
            gr.Button("Quantize, then restore", elem_id="dequantize", **start, visible=False),
            work.dequantize,
            [quantized, bits, reconstruction, quantized_side],
        ),
    ]


def _upload(label: str, suffix: str) -> gr.Image:
    """An upload that hands over the path of the bytes as they came, and below it the examples for it."""
    image = gr.Image(
        label=label,
        type="filepath",
        sources=["upload"],  # what is pasted goes another way (page.js)
        height=220,
        elem_classes="upload",
        buttons=[],
        placeholder="# Drop an image here\nor paste it, or press to choose a file",
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
    gr.HTML('<p role="status"></p>', elem_id="stale")
    # The labels are not shown; they name the outputs of the API.
    status = gr.HTML(values[0], elem_id="status", label="Verdict, as HTML")
    with gr.Row(elem_id="take"):
        download = gr.DownloadButton("Download", visible=False, elem_id="download", scale=0, min_width=150)
        formats = gr.HTML(elem_id="formats", label="Other formats, as HTML")
    view = gr.HTML(values[2], elem_id="view", label="Comparison, as HTML")
    if image:
        view.keep_in_cache.add(str(image))
    deviation = gr.HTML(elem_id="deviation", label="How far off it may be, as HTML")
    facts = gr.HTML(values[4], elem_id="facts", label="What the file says, as HTML")
    with gr.Accordion("The same in Python", open=False, visible=False, elem_id="python") as code_box:
        code = gr.Code(language="python", interactive=False, label="Python", show_line_numbers=False)
        if PIPE.device.type == "cpu":
            gr.HTML(
                f'<p class="note">The same bytes where torch has as many threads as here:'
                f" <code>torch.set_num_threads({torch.get_num_threads()})</code>.</p>"
            )
    return Results(status, download, view, deviation, facts, code_box, code, formats)


# --- Which listener answers to what ---


def _busy(buttons: list[gr.Button], working: bool) -> list:
    """The buttons that start, and the one that cancels."""
    return [*(gr.Button(interactive=not working) for _ in buttons[:-1]), gr.Button(visible=working)]


def _connect_uploads(
    sources: list[Source], preset: gr.Radio, results: Results, buttons: list[gr.Button], runs: list
) -> None:
    """Clear an old result as soon as another image is chosen, say what there is to say about it, and begin.

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

    async def stopped(request: gr.Request) -> list:
        await work.leave(request)
        return [presentation.HINT, gr.DownloadButton(visible=False), "", "", "", *_busy(buttons, False)]

    jpeg, repair, double_compression, quality, subsampling = sources[0].inputs
    stop = {"fn": stopped, "outputs": [*results.of_work, *buttons], "cancels": runs, **_QUIET}
    inspected = {
        "fn": inspect,
        "inputs": sources[0].inputs,
        "outputs": [results.facts, preset, repair, double_compression, sources[0].by_hand],
        "show_progress": "hidden",
        "concurrency_limit": _INSPECTIONS,
        "concurrency_id": INSPECT,
        "api_visibility": "private",
    }
    begun = {"fn": None, "inputs": results.facts, "js": _BEGIN_IF_READ, "api_visibility": "private"}
    for source in sources:
        image = source.inputs[0]
        image.change(None, None, results.components, js=presentation.CLEARED, api_visibility="private")
        left = image.change(**stop)
        if source is not sources[0] and source.at_once:
            start = f"(image) => {{ image && ddrm.press({source.button.elem_id!r}) }}"
            left.then(None, image, js=start, api_visibility="private")
        elif source.at_once:
            # The next file may show no earlier JPEG: what was said of the last is taken back, and not asked for either.
            jpeg.change(None, None, double_compression, js="() => false", api_visibility="private")
            forgetting = "(path, repair, _, ...said) => [path, repair, false, ...said]"
            left.then(**inspected, js=forgetting).then(**begun)
    gr.on([repair.input, double_compression.input], **stop).then(**inspected).then(**begun)
    gr.on([quality.release, subsampling.input], **inspected)


def _connect_work(
    page: Page,
    sources: list[Source],
    presets: list[gr.Radio],
    controls: dict[str, Any],
    results: Results,
    buttons: list[gr.Button],
) -> list:
    """Connect the buttons; what they start is handed back, for others to cancel."""
    *start_buttons, cancel = buttons

    async def cancelled(request: gr.Request) -> list:
        await work.leave(request)
        return ['<p class="hint">Cancelled.</p>', "", *_busy(buttons, False)]

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
        source.button.click(None, [*presets, *controls.values()], js=_BEGIN, api_visibility="private")
        source.button.click(None, None, results.of_work, js=presentation.BEGUN, api_visibility="private")
        started = source.button.click(lambda: _busy(buttons, True), None, buttons, **_QUIET)
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
    return runs


def _connect_settings(page: Page, presets: list[gr.Radio], controls: dict[str, Any], buttons: list[gr.Button]) -> None:
    settings = [controls[name] for name in SETTINGS]
    everything = [*presets, *controls.values()]
    to_query = {"fn": None, "inputs": everything, "js": TO_QUERY % list(SETTINGS), "api_visibility": "private"}

    def chosen(preset: str) -> list:
        values = values_of(preset)
        return [*values, *marked(*values)]

    for preset in presets:
        preset.input(chosen, preset, [*settings, *presets], **_QUIET).then(**to_query)
    gr.on([control.input for control in settings], marked, settings, presets, **_QUIET).then(**to_query)
    gr.on([controls["sharpness"].input, controls["seed"].input], **to_query)

    def read(request: gr.Request) -> list:
        values = from_query(dict(request.query_params), controls)
        return [gr.update(value=value, interactive=True) for value in values]

    page.load(read, None, everything, **(_QUIET | _AT_ONCE)).then(
        lambda: _busy(buttons, False), None, buttons, **_QUIET
    )
