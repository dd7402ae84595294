"""The Space: drop a JPEG on the page, see what its file says, restore it, compare, download."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from pipeline_ddrm_jpeg.extras import needs
from pipeline_ddrm_jpeg.threads import sleep_while_waiting

sleep_while_waiting()
with needs("space"):
    import work  # noqa: F401  isort: skip  before what imports torch
    import gradio as gr
    from folders import delete_folders
    from gate import MAX_STATES
    from gradio.routes import templates
    from jinja2 import ChoiceLoader, DictLoader
    from layout import build
    from limits import MAX_BYTES, MAX_WAITING


HERE = Path(__file__).parent


def _put_first(script: str) -> None:
    """Have the page run a script before gradio's own, as which its `head` comes too late."""
    name = "frontend/index.html"
    source, *_ = templates.env.loader.get_source(templates.env, name)
    head = f"<head><script>{{% raw %}}{script}{{% endraw %}}</script>"
    own = DictLoader({name: source.replace("<head>", head, 1)})
    templates.env.loader = ChoiceLoader([own, templates.env.loader])


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a container is stopped: as Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("space").setLevel(logging.INFO)
    page = build()
    page.queue(max_size=10 * MAX_WAITING, default_concurrency_limit=None, api_open=False)
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
    _put_first((HERE / "page.js").read_text())
    page.launch(
        theme=theme,
        css_paths=HERE / "style.css",
        max_file_size=MAX_BYTES,
        footer_links=["api", "gradio"],
        i18n=gr.I18n(en={"common.complete": "Done.", "common.upload": "Choose more files"}),  # missing in gradio
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=MAX_STATES,
        app_kwargs=page.app_kwargs(),
    )


if __name__ == "__main__":
    try:
        main()
    finally:
        delete_folders()  # at once: what runs in a thread ends with its folder, and the process not before it
