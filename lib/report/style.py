"""How every figure looks, and that it says in words what it shows.

Sizes are for a phone's width, colours are Okabe and Ito's, told apart by shape as well, and an axis that does not start
at zero says so. No seaborn here: it takes a second to import, and the figures of a training do without it.
"""

import functools
import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

WIDTH = 5.0  # inches: at 10 points still readable on a page 360 pixels wide
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#666666"
OURS = {"color": BLUE, "marker": "o", "linestyle": "-"}
PAPER = {"color": ORANGE, "marker": "s", "linestyle": "--"}
ORIGINAL = {"color": GREEN, "marker": "D", "linestyle": ":"}

STYLE: dict[str, Any] = {
    "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "legend.frameon": False, "axes.grid": True,
    "grid.color": "#e5e5e5", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.axisbelow": True, "lines.markersize": 6, "lines.linewidth": 1.6, "text.parse_math": False,
    "svg.hashsalt": "convmixer", "svg.fonttype": "path", "savefig.dpi": 200, "font.family": "DejaVu Sans",
}  # fmt: skip


def styled(draw):
    """Runs a drawing function under STYLE, whatever the reader's own matplotlib settings are."""

    @functools.wraps(draw)
    def wrapped(*args, **options):
        look: Any = {**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}
        with matplotlib.rc_context(look):
            return draw(*args, **options)

    return wrapped


@styled
def save(figure: Figure, kind: str) -> bytes:
    """The figure as `png` or `svg`; the same figure gives the same bytes, with no date and no version in them."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def say_floor(axes) -> None:
    """Says where a vertical axis of accuracies starts when that is not zero, and ends it where there can be none."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 103))  # a dot at 100 % has room; an interval of two seeds may go further
    if abs(low) > 1e-9:
        place = {"xy": (0, 1), "xytext": (2, 3), "textcoords": "offset points", "xycoords": "axes fraction"}
        axes.annotate(f"axis starts at {low:.0f} %", **place, fontsize=8, color=GREY)


def described(figure: Figure, text: str) -> Figure:
    figure.set_label(text)
    return figure
