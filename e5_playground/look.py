"""The page's theme, and what goes into its head: nothing of it comes from elsewhere."""

from pathlib import Path
from urllib.parse import quote

import gradio as gr

FOLDER = Path(__file__).resolve().parent
ICON = FOLDER / "icon.svg"


def theme() -> gr.themes.Base:
    """Calm colours, and the system's own fonts: Gradio's are files from elsewhere or a second's delay."""
    base = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    return base.set(
        body_text_color_subdued="*neutral_600",  # Gradio's neutral_400 on white is a contrast of 2.6
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_weight="600",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        input_border_width="1px",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        checkbox_border_color="*neutral_500",  # Gradio's dark boxes are all but invisible
        checkbox_border_color_dark="*neutral_400",
        color_accent="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


def head() -> str:
    """What goes into the page's head: style and script, and the icon as part of the page."""
    icon = quote(ICON.read_text("utf-8"))
    return (
        f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{icon}">'
        '<meta name="description" content="Try the E5 text-embedding model that this server runs.">'
        f"<style>{(FOLDER / 'style.css').read_text('utf-8')}</style>"
        f"<script>{(FOLDER / 'page.js').read_text('utf-8')}</script>"
    )
