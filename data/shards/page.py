"""A page that needs nothing besides itself.

Names, texts and pictures come from anywhere: in it all of them are escaped, and it may load and run nothing.
"""

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from data.sample import DataError

BEFORE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 1rem; color: #1b1b1b }
h1 { font-size: 1.4rem; overflow-wrap: anywhere }
"""
BETWEEN = "</style></head><body>\n<h1>{{ title }}</h1>\n"
AFTER = "</body></html>\n"


def check_form(path: Path) -> None:
    """DataError unless a page or a picture is to be written."""
    if path.suffix not in (".png", ".html"):
        raise DataError(f"{path}: neither .png nor .html; name one of these")


def render(style: str, body: str, **values: object) -> str:
    """The page of a title and a body; `style` and `body` are Jinja templates of `values`, which holds the title."""
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(BEFORE + style + BETWEEN + body + AFTER)
    return page.render(**values)
