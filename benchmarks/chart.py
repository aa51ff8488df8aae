"""The chart of the README: bars in panels, as SVG that follows the reader's light or dark mode.

Text and bars take their colours from a style sheet in the picture; ours stand out by colour and by weight,
so that the chart can be read without colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from .figures import Figures
from .report import format_figure

WIDTH, LABEL_WIDTH, VALUE_WIDTH, MARGIN = 760, 190, 60, 16
BAR, GAP, HEAD = 14, 6, 52
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 } text.ours { font-weight: 600 }
  .note { fill: #59636e }
  .peer { fill: #8c959f } rect.ours { fill: #0969da } .ground { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .note { fill: #9198a1 } .peer { fill: #656c76 } rect.ours { fill: #4493f8 }
    .ground { fill: #0d1117 }
  }
"""


class Panel(NamedTuple):
    """Bars of one figure, the smallest first."""

    title: str
    unit: str
    bars: Sequence[tuple[str, float]]


PANELS = (
    (("echo",), "100x64x1", "Echo, 100 connections, messages of 64 bytes"),
    (("echo",), "1x64x64", "Echo, one connection, 64 messages of 64 bytes in flight"),
    (("memory", "memory-plain"), "8000 plain", "Memory of an idle connection, 8,000 connections"),
)


def make_panels(tables: Mapping[str, Figures], units: Mapping[str, str]) -> list[Panel]:
    """Choose what the chart shows, from the tables that are there; styles of ours are left out."""
    panels = []
    for names, case, title in PANELS:
        bars = [
            (subject, value)
            for figures in (tables.get(name, Figures()) for name in names)
            for subject in figures.subjects
            if (value := figures.get(case, subject)) is not None and not subject.endswith(("-def", "-python"))
        ]
        if bars:
            panels.append(Panel(title, units[names[0]], sorted(bars, key=lambda bar: bar[1])))
    return panels


def draw(panels: Sequence[Panel], note: str) -> str:
    """Return the SVG of the panels, one below the other, with a note at the foot."""
    parts, y = [], MARGIN
    for panel in panels:
        parts.append(_draw_panel(panel, y))
        y += HEAD + len(panel.bars) * (BAR + GAP) + MARGIN
    parts.append(f'<text class="note" x="{MARGIN}" y="{y + 8}">{escape(note)}</text>')
    height = y + 8 + MARGIN
    description = "; ".join(panel.title for panel in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(description)}">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _draw_panel(panel: Panel, top: int) -> str:
    most = max(value for _, value in panel.bars)
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH - 2 * MARGIN
    lines = [
        f'<text class="title" x="{MARGIN}" y="{top + 14}">{escape(panel.title)}</text>',
        f'<text class="note" x="{MARGIN}" y="{top + 33}">{escape(panel.unit)}; less is better</text>',
    ]
    for index, (subject, value) in enumerate(panel.bars):
        y, width = top + HEAD - 8 + index * (BAR + GAP), max(1.0, value / most * room)
        kind, x = "ours" if subject.startswith("ours-") else "peer", MARGIN + LABEL_WIDTH
        label = subject.replace("ours-", "anyio_ws on ", 1) if kind == "ours" else subject
        text = ' class="ours"' if kind == "ours" else ""
        lines += [
            f'<text{text} x="{x - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text{text} x="{x + width + 6:.1f}" y="{y + 12}">{format_figure(value)}</text>',
        ]
    return "\n".join(lines)
