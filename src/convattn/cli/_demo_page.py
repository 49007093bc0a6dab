"""The page of ``convattn demo``: a photograph in, the answer and what the network looked at out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from convattn.data.names import shortened
from convattn.errors import UserError
from convattn.report.heat import share_over
from convattn.report.looks import CAM_INTRO, PATHS_INTRO, PIXEL_INTRO, Look
from convattn.tasks.answers import AnswerOptions
from convattn.tasks.explaining import Explained, Photo
from convattn.tasks.inference import LoadedModel

SIDE = 480
HEIGHT = 360
CSS = """
.grid-wrap { max-height: none !important; height: auto !important }
@media (min-width: 820px) { .grid-wrap .grid-container { grid-template-columns: repeat(4, 1fr) !important } }
"""
"""Gradio cuts galleries off at a height of its own, and has as many columns on every screen."""

BUTTONS = ["download", "fullscreen"]
GALLERY: dict[str, Any] = {
    "show_label": False,
    "columns": 2,
    "height": "auto",
    "object_fit": "contain",
    "buttons": BUTTONS,
    "interactive": False,
}
SHOWN_CLASSES = 20

FONTS = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]
"""Gradio's own fonts come from the network."""

Pictures = list[tuple[Image.Image, str]]
Outputs = tuple[Explained, str, Image.Image, Image.Image, Pictures, Pictures]


@contextmanager
def served(page: gr.Blocks, *, host: str, port: int, browser: bool) -> Iterator[None]:
    """Serve a page; it can be opened from the first moment on."""
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "Consolas", "monospace"])
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        theme=theme,
        css=CSS,
        footer_links=[],
        quiet=True,
        ssr_mode=False,
    )
    try:
        yield
    finally:
        page.close(verbose=False)


def make_page(loaded: LoadedModel, options: AnswerOptions) -> gr.Blocks:
    """Return the page of a model."""

    def answer(image: Image.Image | None) -> Outputs:
        if image is None:
            raise gr.Error("Choose a photograph first.", print_exception=False)
        with _told():
            explained = Explained(loaded, Photo.of(ImageOps.exif_transpose(image), "photograph"), options)
            return explained, *_shown(explained.look())

    def attend(explained: Explained | None, event: gr.SelectData) -> Pictures:
        if explained is None:
            raise gr.Error("Choose a photograph first.", print_exception=False)
        with _told():
            return _attention(explained.look((int(event.index[0]), int(event.index[1]))))

    with gr.Blocks(title=f"convattn: {loaded.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {loaded.name}")
        gr.Markdown(f"{len(loaded.classes)} classes: {shortened(loaded.classes, SHOWN_CLASSES)}")
        known = gr.State(None)
        with gr.Row():
            sources = ["upload", "webcam", "clipboard"]
            photo = gr.Image(type="pil", label="Photograph", elem_id="photo", sources=sources, height=HEIGHT)
            drawn = gr.Image(label="Answer", interactive=False, height=HEIGHT, buttons=BUTTONS)
        said = gr.Textbox(label="The answer in words", interactive=False)
        gr.Markdown(f"## Grad-CAM\n{CAM_INTRO}")
        cam = gr.Image(show_label=False, interactive=False, height=HEIGHT, buttons=BUTTONS)
        gr.Markdown(f"## What one pixel attends to\nClick a pixel of the photograph. {PIXEL_INTRO}")
        attention = gr.Gallery(elem_id="attention", **GALLERY)
        gr.Markdown(f"## Attention (blue) or convolution (orange)\n{PATHS_INTRO}")
        paths = gr.Gallery(**GALLERY)
        photo.input(answer, photo, [known, said, drawn, cam, attention, paths], api_name="answer")
        photo.select(attend, known, attention, api_name=False)
    return page


@contextmanager
def _told() -> Iterator[None]:
    """Show on the page what a person can mend."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _shown(look: Look) -> tuple[str, Image.Image, Image.Image, Pictures, Pictures]:
    said = f"{look.said}\n{look.remark}".strip()
    shares = [(share_over(look.seen, one.share, SIDE), one.share.name) for one in look.paths]
    return said, look.answer, look.cam_picture(SIDE), _attention(look), shares


def _attention(look: Look) -> Pictures:
    return [(look.attention_picture(one, SIDE), one.name) for one in look.attention]
