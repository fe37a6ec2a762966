"""A page as one file of HTML: no address is asked, nothing beside it is needed.

Readable on a phone, printable, by keyboard and by screen reader: every chart has a sentence that
says what it shows and its numbers as a table, every picture a text. It follows the reader's choice
of light or dark.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.documents import to_json
from limbeck.evaluation.page.charts import Chart, library


@dataclass(frozen=True)
class Text:
    """Paragraphs, and tables, in Markdown; HTML in it is shown as it is written."""

    markdown: str


@dataclass(frozen=True)
class Table:
    """Rows by column name. None and a missing key are empty."""

    rows: Sequence[dict[str, Any]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows in words."""

    content: bytes
    alt: str


@dataclass(frozen=True)
class Code:
    """What is to be copied."""

    text: str


Block = Text | Table | Picture | Code | Chart


@dataclass
class Section:
    """A part of the page, with a heading that its list of contents names."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def render(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page. ``lead``: what is said first, in a sentence or two."""
    shown = [each for each in sections if each.blocks]
    charts = [b for each in shown for b in each.blocks if isinstance(b, Chart)]
    numbers = iter(range(len(charts)))
    contents = "".join(
        f'<li><a href="#part{k}">{_escaped(each.title)}</a></li>' for k, each in enumerate(shown)
    )
    parts = "".join(
        f'<section id="part{k}" aria-labelledby="head{k}"><h2 id="head{k}">'
        f"{_escaped(each.title)}</h2>{''.join(_block(b, numbers) for b in each.blocks)}</section>"
        for k, each in enumerate(shown)
    )
    verdict = "".join(f'<p class="lead">{_escaped(text)}</p>' for text in lead)
    figures = to_json([chart.figure for chart in charts], None).replace("<", "\\u003c")
    script = (
        f'<script type="application/json" id="figures">{figures}</script>'
        f"<script>{library()}</script><script>{_beside('page.js')}</script>"
        if charts
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_escaped(title)}</title><style>{_beside('page.css')}</style></head><body>"
        '<a class="skip" href="#main">Skip to what was found</a>'
        f"<header><h1>{_escaped(title)}</h1></header>"
        f'<main id="main">{verdict}<nav aria-label="Contents"><ul>{contents}</ul></nav>{parts}'
        f"</main><footer><p>Made by Limbeck.</p></footer>{script}</body></html>\n"
    )


def _block(block: Block, numbers: Any) -> str:
    if isinstance(block, Text):
        return _markdown(block.markdown)
    if isinstance(block, Table):
        return _table(block.rows, block.caption)
    if isinstance(block, Picture):
        data = base64.b64encode(block.content).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{_escaped(block.alt)}">'
    if isinstance(block, Code):
        return f'<pre tabindex="0" role="group" aria-label="command">{_escaped(block.text)}</pre>'
    return (
        f'<figure><div class="chart" id="chart{next(numbers)}" role="img" '
        f'aria-label="{_escaped(block.alt)}"></div>'
        f"<figcaption>{_escaped(block.alt)}</figcaption>"
        f"<details><summary>The numbers</summary>{_table(block.rows, '')}</details></figure>"
    )


def _markdown(text: str) -> str:
    from markdown_it import MarkdownIt

    made = str(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
    return made.replace("<table>", _SCROLLED).replace("</table>", "</table></div>")


def _table(rows: Sequence[dict[str, Any]], caption: str) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th scope="col">{_escaped(key)}</th>' for key in columns)
    lines = []
    for row in rows:
        first, *rest = (_cell(row.get(key)) for key in columns)
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    said = f"<caption>{_escaped(caption)}</caption>" if caption else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"{_SCROLLED}{said}{body}</table></div>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return _escaped(f"{value:.4g}" if isinstance(value, float) else value)


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _escaped(value: Any) -> str:
    return html.escape(str(value))


_SCROLLED = '<div class="wide" tabindex="0" role="group" aria-label="table"><table>'
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
