"""What the summary displays: a table, a figure or sentences, as escaped HTML with the files to save beside it.

Nothing is written here. Each display carries its CSV, or PNG and SVG, and the name of its file; lib.report saves
them from the executed notebook, so the page and the files cannot say different things.
"""

import base64
import html
import re

import pandas as pd
from IPython.display import display

from lib.report import captions, style
from lib.report.columns import Column

CODE, LINK = re.compile(r"`([^`]+)`"), re.compile(r"\[([^\]]+)\]\(((?:https://)?[^):\s]+)\)")  # no javascript:
LONG = 60  # characters: such texts keep some width, also on a phone, where the table is scrolled
SIGNS = {"−": "$-$", "–": "--", "±": "$\\pm$", "×": "$\\times$", "→": "$\\to$", "“": "``", "”": "''"}  # in LaTeX


def say(*sentences: str) -> None:
    """Displays sentences as one paragraph; text between backticks is set as code."""
    if sentences:
        display({"text/html": f"<p>{_prose(' '.join(sentences))}</p>", "text/plain": "\n".join(sentences)}, raw=True)


def masthead(text: str, facts: dict[str, str]) -> None:
    """Displays what a page begins with: whose work it is about, and facts by name; both may hold [text](link)."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{_prose(value)}</dd>" for name, value in facts.items())
    plain = "\n".join([text, *(f"{name}: {value}" for name, value in facts.items())])
    markup = f'<header class="masthead"><p>{_prose(text)}</p><dl>{rows}</dl></header>'
    display({"text/html": markup, "text/plain": plain}, raw=True)


def listing(sentences) -> None:
    """Displays sentences as a list."""
    items = "".join(f"<li>{_prose(sentence)}</li>" for sentence in sentences)
    display({"text/html": f"<ul>{items}</ul>", "text/plain": "\n".join(sentences)}, raw=True)


def table(number: str, make, *data, caption: str) -> None:
    """Displays the table that `make(*data)` computes; `number` is the paper's, such as "Table II", or a word.

    One that has nothing to say is left out: one of no runs, without rows, or without a finished run where the paper has
    no such table.
    """
    if _of_no_runs(data):
        return
    frame = make(*data)
    if frame.empty or ("n" in frame and not frame["n"].any() and not number.startswith("Table ")):
        return
    file = _file(number, make)
    heading = _caption(number, caption, make, data, [f"tables/{file}.{kind}" for kind in ("csv", "tex")])
    label = html.escape(f"{number} {caption}".strip(), quote=True)
    markup = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{html_table(frame, make.columns)}</div>'
    )
    bundle = {
        "text/html": f'<figure class="table" id="{file}">{heading}{markup}</figure>',
        "text/plain": frame.to_string(),
        "text/csv": to_csv(frame),
        "text/latex": to_latex(frame, make.columns),
    }
    display(bundle, metadata={"file": file}, raw=True)


def figure(number: str, draw, *data, caption: str, absent: str = "") -> None:
    """Displays the figure that `draw(*data)` returns, or the words `absent` in its place where it returns None.

    One of runs that the study does not ask for is left out.
    """
    if _of_no_runs(data):
        return
    drawn = draw(*data)
    if drawn is None:
        markup = f'<p class="note">{_prose(f"{number} cannot be drawn yet. {absent}".strip())}</p>'
        display({"text/html": markup, "text/plain": absent}, metadata={"file": _file(number, draw)}, raw=True)
        return
    file, (svg, png) = _file(number, draw), (style.save(drawn, kind) for kind in ("svg", "png"))
    alt = html.escape(drawn.get_label(), quote=True)
    image = f'<img src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" alt="{alt}">'
    below = _caption(number, caption, draw, data, [f"figures/{file}.{kind}" for kind in ("png", "svg")])
    bundle = {
        "text/html": f'<figure id="{file}">{image}{below}</figure>',
        "text/plain": drawn.get_label(),
        "image/svg+xml": svg.decode(),
        "image/png": base64.b64encode(png).decode(),
    }
    display(bundle, metadata={"file": file}, raw=True)


def _of_no_runs(data: tuple) -> bool:
    return any(isinstance(part, (pd.DataFrame, dict)) and not len(part) for part in data)


def to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV: the names and numbers that the code uses, ten significant digits, nothing for NaN, plain text."""
    frame = frame.map(lambda value: CODE.sub(r"\1", LINK.sub(r"\1", value)) if isinstance(value, str) else value)
    return frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def html_table(frame: pd.DataFrame, columns: tuple[Column, ...]) -> str:
    """A table as a person reads it: headings, rounded numbers, mean and half-interval in one cell, all escaped."""
    shown = as_text(frame, columns)
    kinds = [_kind(column, shown[column.heading]) for column in columns if column.heading in shown]
    names = zip(shown.columns, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{html.escape(name)}</th>' for name, kind in names)
    body = ""
    for row, (first, *others) in zip(frame.to_dict("records"), shown.itertuples(index=False), strict=True):
        cells = [f'<th scope="row"{kinds[0]}>{_prose(first)}</th>']
        for text, kind in zip(others, kinds[1:], strict=True):
            # A verdict has the colour of its word.
            kind = kind.replace("verdict", f"verdict {text.replace(' ', '-')}")
            cells.append(f"<td{kind}>{_prose(text)}</td>")
        body += f"<tr{_unfinished(row)}>{''.join(cells)}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def to_latex(frame: pd.DataFrame, columns: tuple[Column, ...]) -> str:
    """The same table for a paper, with the lines of booktabs; \\usepackage{booktabs} in the preamble.

    Numbers are right-aligned, long texts broken; links are their words, and signs are commands that every LaTeX knows.
    """
    shown = as_text(frame, columns).map(lambda text: LINK.sub(r"\1", text))
    numbers = {column.heading for column in columns if column.kind == "number"}
    widest = shown.map(len).max()
    kinds = ["r" if name in numbers else "p{4cm}" if widest[name] > 40 else "l" for name in shown]
    text = CODE.sub(r"\\texttt{\1}", shown.to_latex(index=False, escape=True, column_format="".join(kinds)))
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    return text


def as_text(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pd.DataFrame:
    """The texts of the columns that have something to say, under their headings."""
    rows = frame.to_dict("records")
    texts = {column: [column.text(row) for row in rows] for column in columns}
    shown = [column for column in columns if not column.optional or any(t not in ("", "–") for t in texts[column])]
    table = pd.DataFrame({i: texts[column] for i, column in enumerate(shown)})
    return table.set_axis([column.heading for column in shown], axis=1)


def _unfinished(row: dict) -> str:
    return ' class="unfinished"' if row.get("status", "done") != "done" else ""


def _kind(column: Column, texts: pd.Series) -> str:
    if column.kind == "words":
        return ' class="long"' if texts.map(len).max() > LONG else ""
    return f' class="{column.kind}"'


def _caption(number: str, text: str, made_by, data: tuple, files: list[str]) -> str:
    text = f"{text} {captions.basis(made_by, *data)}".rstrip()
    drawn_by = f"{made_by.__module__.rpartition('.')[2]}.{made_by.__name__}"
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
    """Escaped text with `code` and [links](to); a number stays on one line with its percent sign."""
    text = CODE.sub(r"<code>\1</code>", re.sub(r"(?<=\d) %", "\u00a0%", html.escape(text)))
    return LINK.sub(r'<a href="\2">\1</a>', text)
