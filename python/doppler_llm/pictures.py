"""Pictures as SVG, for notebooks and files: maps of numbers, and attention. No library is needed to see them.

Text has the colour of the page around it, and cells are a tint over the page's own background, so that a picture can be read
on a light page and on a dark one.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np

from .binary import PathLike

#: Red, green and blue of the tint, and its most opaque: text over it keeps a contrast above 4.5 on white and on black.
TINT: Tuple[int, int, int] = (217, 84, 19)
STRONGEST = 0.78
#: The tint of what is NaN or infinite.
ODD = (190, 30, 160)
#: Above so many cells a map is an image of pixels, and cells have no text of their own.
MOST_CELLS = 4096
#: Above so many columns cells are narrow and have no numbers.
MOST_NUMBERS = 24
_FONT = 'font-family="ui-monospace,Menlo,Consolas,monospace"'


class Picture:
    """An SVG picture. A notebook shows it; ``save`` writes it to a file; ``svg`` is its text."""

    def __init__(self, title: str, svgs: Sequence[str], values: np.ndarray) -> None:
        #: What it shows, in words.
        self.title = title
        #: The pictures, side by side: one, or one for each head.
        self.svgs = list(svgs)
        #: The numbers that it shows.
        self.values = values

    @property
    def svg(self) -> str:
        """The first picture."""
        return self.svgs[0]

    def _repr_html_(self) -> str:
        figures = "".join(f'<div style="max-width:100%;overflow-x:auto">{svg}</div>' for svg in self.svgs)
        title = html.escape(self.title)
        return f'<figure style="margin:0" aria-label="{title}"><div style="display:flex;flex-wrap:wrap;gap:12px">{figures}</div></figure>'

    def save(self, path: PathLike) -> Path:
        """Writes an HTML page where the name ends in ``.html``, else the first picture as SVG. Both follow the reader's choice of dark or light."""
        path = Path(path)
        scheme = ":root{color-scheme:light dark}"
        if path.suffix == ".html":
            head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{scheme}body{{font-family:sans-serif}}</style>'
            path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{self._repr_html_()}</body></html>\n', encoding="utf-8")
        else:
            dark = "@media (prefers-color-scheme:dark){svg{color:#eee;background:#111}}"
            path.write_text(self.svg.replace(">", f"><style>{dark}</style>", 1) + "\n", encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"<Picture: {self.title}, {' x '.join(map(str, self.values.shape))}>"


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    *,
    name: str = "value",
    texts: Optional[Sequence[Sequence[str]]] = None,
    tips: Optional[Sequence[Sequence[str]]] = None,
    shades: Optional[np.ndarray] = None,
) -> Picture:
    """A map of numbers, rows by columns. Without ``shades`` (0 to 1), colours follow the logarithm of the size.

    ``texts`` stand in the cells in place of the numbers, ``tips`` are shown when the pointer rests on a cell.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"{title}: expected {len(rows)} x {len(columns)} numbers, found {list(values.shape)}")
    shades = logarithmic(values) if shades is None else np.asarray(shades, np.float64)
    has_text = texts is not None or len(columns) <= MOST_NUMBERS
    if texts is None:
        texts = [[short(x) for x in row] for row in values]
    if tips is None:
        tips = [[f"{rows[i]} {columns[j]!r} {name} {short(x)}" for j, x in enumerate(row)] for i, row in enumerate(values)]
    longest = max((len(text) for row in texts for text in row), default=1)
    width = max(48, 7 * longest + 10) if has_text else 14
    svg = _map(title, rows, columns, shades, np.isfinite(values), (width, 20), texts if has_text else None, tips)
    return Picture(title, [svg], values)


def attention(title: str, rows: Sequence[str], columns: Sequence[str], values: np.ndarray, heads: Sequence[int]) -> Picture:
    """A map for each of ``heads``: rows look, columns are looked at. ``values`` are probabilities, [heads, tokens, positions]."""
    values = np.asarray(values, np.float64)
    svgs: List[str] = []
    for head in heads:
        of = values[head]
        tips = None
        if of.size <= MOST_CELLS:
            tips = [[f"{rows[i]!r} looks at {columns[j]!r}: {x:.3f}" for j, x in enumerate(row)] for i, row in enumerate(of)]
        svgs.append(_map(f"{title}, head {head}", rows, columns, np.nan_to_num(of), np.isfinite(of), (16, 16), None, tips))
    return Picture(title, svgs, values[list(heads)])


def logarithmic(values: np.ndarray) -> np.ndarray:
    """Shades from 0 to 1 by the logarithm of the size; 0 for what is 0 or no finite number."""
    sizes = np.abs(values)
    usable = np.isfinite(sizes) & (sizes > 0)
    shades = np.zeros(values.shape)
    if usable.any():
        logs = np.log10(sizes[usable])
        low, high = logs.min(), logs.max()
        shades[usable] = (logs - low) / (high - low) if high > low else 0.5
    return shades


def short(x: float) -> str:
    """Three significant digits."""
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else ("Inf" if x > 0 else "-Inf")
    return f"{float(f'{x:.3g}'):g}"


def _map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shades: np.ndarray,
    finite: np.ndarray,
    cell: Tuple[int, int],
    texts: Optional[Sequence[Sequence[str]]],
    tips: Optional[Sequence[Sequence[str]]],
) -> str:
    """One SVG: a title, names of columns at a slant, names of rows, cells."""
    (width, height), size = cell, 11
    # Rows and columns of pixels are too thin for names of each.
    is_image = shades.size > MOST_CELLS
    if is_image:
        width = height = max(1, min(cell[1], 640 // max(1, len(columns))))
    named = not is_image or height >= size
    left = (7 * max((len(_label(name)) for name in rows), default=1) + 10) if named else 4
    top = 26 + (int(5.2 * max((len(_label(name)) for name in columns), default=1)) + 10 if named else 4)
    wide, high = left + width * len(columns) + (60 if named else 4), top + height * len(rows) + 6
    wide = max(wide, 7 * len(title) + 8)
    shown = html.escape(title)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="{shown}" {_FONT} font-size="{size}" fill="currentColor">',
        f'<text x="4" y="14" font-weight="bold">{shown}</text>',
    ]
    if named:
        for j, column in enumerate(columns):
            x, y = left + width * j + width // 2, top - 5
            out.append(f'<text transform="translate({x},{y}) rotate(-50)">{html.escape(_label(column))}</text>')
        for i, row in enumerate(rows):
            y = top + height * i + height // 2 + 4
            out.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{html.escape(_label(row))}</text>')
    if is_image:
        place = f'x="{left}" y="{top}" width="{width * len(columns)}" height="{height * len(rows)}"'
        out.append(f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" href="{_png(shades, finite)}"/>')
    else:
        for i in range(len(rows)):
            for j in range(len(columns)):
                x, y = left + width * j, top + height * i
                colour, opacity = (TINT, STRONGEST * float(np.clip(shades[i, j], 0, 1))) if finite[i, j] else (ODD, STRONGEST)
                tip = f"<title>{html.escape(tips[i][j])}</title>" if tips else ""
                out.append(
                    f'<rect x="{x}" y="{y}" width="{width - 1}" height="{height - 1}" fill="rgb{colour}" fill-opacity="{opacity:.3f}" '
                    f'stroke="currentColor" stroke-opacity="0.15">{tip}</rect>'
                )
                if texts:
                    text = html.escape(texts[i][j])
                    out.append(f'<text x="{x + width // 2}" y="{y + height // 2 + 4}" text-anchor="middle" pointer-events="none">{text}</text>')
    out.append("</svg>")
    return "".join(out)


def _label(text: str) -> str:
    """A token's text as a name: spaces are seen, long ones are cut."""
    text = text.replace(" ", "·").replace("\n", "⏎")
    return text if len(text) <= 18 else text[:17] + "…"


def _png(shades: np.ndarray, finite: np.ndarray) -> str:
    """A picture of one pixel for each cell, as an address that holds it."""
    rows, columns = shades.shape
    pixels = np.zeros((rows, columns, 4), np.uint8)
    pixels[..., :3] = np.where(finite[..., None], TINT, ODD)
    pixels[..., 3] = np.where(finite, np.clip(np.nan_to_num(shades), 0, 1), 1.0) * STRONGEST * 255
    # Each row begins with the number of its filter: none.
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
