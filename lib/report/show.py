"""What the summary displays: a table, a figure or sentences, as escaped HTML with the files to save beside it.

Nothing is written here. Each display carries its CSV, or PNG and SVG, and the name of its file; lib.report saves
them from the executed notebook, so the page and the files cannot say different things.
"""

import base64
import html
import re

import pandas as pd
from IPython.display import display

from lib.report import figures

# Column of a table -> heading and format. A column that is not here appears in the CSV only.
COLUMNS = {
    "part": ("part", "{}"), "run": ("run", "{}"), "settings": ("settings", "{}"), "setting": ("setting", "{}"),
    "kernel": ("k", "{:.0f}"), "patch": ("p", "{:.0f}"), "lr": ("learning rate", "{:g}"), "seed": ("seed", "{}"),
    "step": ("step", "{}"), "images": ("images", "{}"), "train_batch": ("train batch", "{}"),
    "test_batch": ("test batch", "{}"),
    "epochs": ("epochs", "{}"), "selected_epoch": ("selected epoch", "{:.0f}"),
    "ours": ("ours (%)", "{:.2f}"), "difference": ("ours", "{:+.2f}"), "n": ("n", "{}"),
    "last_epoch": ("last epoch (%)", "{:.2f}"), "selected": ("selected epoch (%)", "{:.2f}"),
    "best_on_test": ("best on test: a leak (%)", "{:.2f}"), "validation": ("validation (%)", "{:.2f}"),
    "p": ("sign-flip p", "p"), "smallest_p": ("smallest p of n", "p"), "images_p": ("McNemar p, these images", "p"),
    "study": ("the study (%)", "{:.2f}"), "ours_minus_study": ("ours − study", "{:+.2f}"),
    "original": ("the original (%)", "{:.2f}"), "ours_minus_original": ("ours − original", "{:+.2f}"),
    "study_step": ("the study", "{:+.2f}"), "original_step": ("the original", "{:+.2f}"),
    "study_last_epoch": ("the study, last epoch (%)", "{:.2f}"),
    "study_best_on_test": ("the study, as printed (%)", "{:.2f}"),
    "hours": ("hours", "{:.2f}"), "minutes_per_epoch": ("min/epoch", "{:.2f}"),
    "study_epochs": ("epochs, the study", "{:.0f}"), "study_hours": ("hours, the study", "{:.1f}"),
    "study_minutes_per_epoch": ("min/epoch, the study", "{:.1f}"),
    "minutes": ("minutes a run", "{:.1f}"), "seconds_per_epoch": ("s/epoch", "{:.1f}"),
    "seconds": ("seconds", "{:.0f}"), "images_per_second": ("images/s", "{:,.0f}"),
    "peak_memory_mb": ("peak memory of the process (MB)", "{:,.0f}"), "parameters": ("parameters", "{:,.0f}"),
    "forward_macs": ("forward MMACs", "mega"), "published": ("published elsewhere (%)", "{}"),
    "network": ("network", "{}"), "default_images": ("PyTorch (img/s)", "{:.1f}"),
    "tuned_images": ("tuned (img/s)", "{:.1f}"), "native_images": ("native (img/s)", "{:.1f}"),
    "native": ("type", "{}"),
    "over_default": ("over PyTorch", "{:.1f} ×"), "over_tuned": ("over tuned", "{:.1f} ×"),
    "bound_share": ("of the bound", "{:.0%}"), "default_mb": ("PyTorch (MB)", "{:,.0f}"),
    "native_mb": ("native (MB)", "{:,.0f}"),
    "parameter": ("parameter", "{}"), "as_written": ("the paper as written", "{}"), "here": ("here", "{}"),
    "fact": ("fact", "{}"), "value": ("value", "{}"), "runs": ("runs", "{}"),
    "status": ("status", "{}"), "reason": ("reason", "{}"),
}  # fmt: skip
OPTIONAL = ("p", "smallest_p", "images_p", "reason", "published")  # left out of the page where they are empty
WORDS = ("part", "run", "network", "images", "settings", "setting", "step", "status", "reason", "parameter",
         "native", "as_written", "here", "fact", "value", "published", "train_batch",
         "test_batch")  # fmt: skip
SHORT = ("part", "run", "network", "images", "setting", "step", "fact", "parameter")  # never broken over two lines


def say(*sentences: str) -> None:
    """Displays sentences as one paragraph; text between backticks is set as code."""
    if sentences:
        display({"text/html": f"<p>{_prose(' '.join(sentences))}</p>", "text/plain": "\n".join(sentences)}, raw=True)


def listing(sentences) -> None:
    """Displays sentences as a list."""
    items = "".join(f"<li>{_prose(sentence)}</li>" for sentence in sentences)
    display({"text/html": f"<ul>{items}</ul>", "text/plain": "\n".join(sentences)}, raw=True)


def table(number: str, make, *data, caption: str) -> None:
    """Displays the table that `make(*data)` computes; `number` is the paper's, such as "Table II", or a word."""
    frame = make(*data)
    if frame.empty:
        return
    file = _file(number, make)
    heading = _caption(number, caption, f"tables.{make.__name__}", [f"tables/{file}.csv"])
    label = html.escape(f"{number} {caption}".strip(), quote=True)
    markup = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{html_table(frame)}</div>'
    bundle = {
        "text/html": f'<figure class="table" id="{file}">{heading}{markup}</figure>',
        "text/plain": frame.to_string(),
        "text/csv": to_csv(frame),
    }
    display(bundle, metadata={"file": file}, raw=True)


def figure(number: str, draw, *data, caption: str, absent: str = "") -> None:
    """Displays the figure that `draw(*data)` returns, or the words `absent` in its place where it returns None."""
    drawn = draw(*data)
    if drawn is None:
        markup = f'<p class="note">{_prose(f"{number} cannot be drawn yet. {absent}".strip())}</p>'
        display({"text/html": markup, "text/plain": absent}, raw=True)
        return
    file, (svg, png) = _file(number, draw), (figures.save(drawn, kind) for kind in ("svg", "png"))
    alt = html.escape(drawn.get_label(), quote=True)
    image = f'<img src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" alt="{alt}">'
    below = _caption(number, caption, f"figures.{draw.__name__}", [f"figures/{file}.{kind}" for kind in ("png", "svg")])
    bundle = {
        "text/html": f'<figure id="{file}">{image}{below}</figure>',
        "text/plain": drawn.get_label(),
        "image/svg+xml": svg.decode(),
        "image/png": base64.b64encode(png).decode(),
    }
    display(bundle, metadata={"file": file}, raw=True)


def to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV: the names and numbers that the code uses, ten significant digits, nothing for NaN."""
    return frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def html_table(frame: pd.DataFrame) -> str:
    """A table as a person reads it: headings, rounded numbers, mean and half-interval in one cell, all escaped."""
    names = [name for name in COLUMNS if name in frame and not _needless(frame, name)]
    head = "".join(f'<th scope="col"{_kind(name)}>{html.escape(COLUMNS[name][0])}</th>' for name in names)
    rows = []
    for row in frame.to_dict("records"):
        cells = "".join(f"<td{_kind(name)}>{html.escape(cell(row, name))}</td>" for name in names)
        rows.append(f"<tr{_unfinished(row)}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def cell(row: dict, name: str) -> str:
    """The text of one cell; a dash where there is no number."""
    value, form = row[name], COLUMNS[name][1]
    if name == "n":
        asked = row.get("seeds", row["runs"] if "part" in row else value)
        return f"{value} of {asked}" if value != asked else f"{value}"
    if not isinstance(value, str) and pd.isna(value):
        return "–"
    if form == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if form == "mega":
        return f"{value / 1e6:,.0f}"
    spread = row.get("half") if name in ("ours", "difference") else None
    if name in WORDS:
        return form.format(value)
    return form.format(value).replace("-", "−") + (f" ± {spread:.2f}" if pd.notna(spread) else "")


def _needless(frame: pd.DataFrame, name: str) -> bool:
    if name == "status":
        return bool((frame[name] == "done").all())
    if name == "runs" and "part" in frame:
        return True  # in the column n
    if name in ("kernel", "patch") and "network" in frame:
        return True  # in the network's name
    if name == "setting" and "patch" in frame:
        return not frame[["kernel", "patch"]].duplicated().any()  # k and p say it
    return name in OPTIONAL and bool((frame[name].isna() | (frame[name] == "")).all())


def _unfinished(row: dict) -> str:
    return ' class="unfinished"' if row.get("status", "done") != "done" else ""


def _kind(name: str) -> str:
    if name in SHORT:
        return ' class="short"'
    return "" if name in WORDS else ' class="number"'


def _caption(number: str, text: str, drawn_by: str, files: list[str]) -> str:
    links = " ".join(f'<a href="{path}">{path.rpartition(".")[2].upper()}</a>' for path in files)
    return (
        f"<figcaption><b>{html.escape(number)}.</b> {_prose(text)} "
        f'<span class="source"><code>{html.escape(drawn_by)}</code> {links}</span></figcaption>'
    )


def _file(number: str, make) -> str:
    """Table II by `kernel` -> table-ii-kernel; Kernel steps -> kernel-steps."""
    numbered = re.match(r"(Table|Fig\.) ", number)
    return re.sub(r"[^a-z0-9]+", "-", f"{number} {make.__name__ if numbered else ''}".lower()).strip("-")


def _prose(text: str) -> str:
    """Escaped text, with `code` between backticks; a number stays on one line with its percent sign."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"(?<=\d) %", "\u00a0%", html.escape(text)))
