"""How a column of a table is read by a person: its heading, and the text of a cell from the row's numbers."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd


class Column(NamedTuple):
    """One column of a table on the page; the CSV has the number itself, under `name`."""

    name: str
    heading: str
    text: Callable[[dict], str]  # of a cell, from its row
    kind: str = "number"  # number (right-aligned), words, or short (words that are never broken over two lines)
    optional: bool = False  # left out where it has nothing to say in any row


def signed(points: float) -> str:
    """+1.23 or −1.23."""
    return f"{points:+.2f}".replace("-", "−")


def count(n: int, word: str) -> str:
    """1 seed, 3 seeds."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def interval(half: float | None) -> str:
    """Behind a mean, the half-width of its interval: ` ± 0.45`, or nothing where there is none, as with one seed."""
    return "" if pd.isna(half) else f" ± {half:.2f}"


def number(name: str, heading: str, form: str = "{:.2f}", spread: str = "", optional: bool = False) -> Column:
    """A number, with the half-width of its interval (column `spread`) behind it where there is one."""

    def text(row: dict) -> str:
        if pd.isna(row[name]):
            return "–"
        return form.format(row[name]).replace("-", "−") + interval(row.get(spread))

    return Column(name, heading, text, optional=optional)


def theirs(name: str, heading: str, form: str = "{:.2f}") -> Column:
    """A published number, or a difference to one, left out where no row has one."""
    return number(name, heading, form, optional=True)


def mega(name: str, heading: str) -> Column:
    """A count in millions."""
    return Column(name, heading, lambda row: "–" if pd.isna(row[name]) else f"{row[name] / 1e6:,.0f}")


def p_value(name: str, heading: str) -> Column:
    """The p-value of a test, left out where no row has one."""

    def text(row: dict) -> str:
        p = row[name]
        return "–" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"

    return Column(name, heading, text, optional=True)


def words(name: str, heading: str, kind: str = "words", optional: bool = False) -> Column:
    """Text as it is."""
    return Column(name, heading, lambda row: str(row[name]), kind, optional)


def _finished(row: dict) -> str:
    asked = row.get("seeds", row.get("runs", row["n"]))
    return f"{row['n']} of {asked}" if row["n"] != asked else f"{row['n']}"


SETTING = words("setting", "setting", "short")
KERNEL, PATCH = number("kernel", "k", "{:.0f}"), number("patch", "p", "{:.0f}")
OURS, N = number("ours", "ours (%)", spread="half"), Column("n", "n", _finished)
# What others published is left out where nothing is comparable: none of it is of other data than CIFAR-10.
PAPER, ORIGINAL = theirs("paper", "the paper (%)"), theirs("original", "the original (%)")
COMPARED = (
    OURS, N,
    PAPER, theirs("ours_minus_paper", "ours − paper", "{:+.2f}"),
    ORIGINAL, theirs("ours_minus_original", "ours − original", "{:+.2f}"),
)  # fmt: skip


def _status(row: dict) -> str:
    return "" if row["status"] == "done" else row["status"]


STATUS = Column("status", "status", _status, "words", optional=True)


def verdict(name: str, heading: str) -> Column:
    """One of the words of lib/report/claims.py, in its colour."""
    return Column(name, heading, lambda row: row[name], "verdict")


def timed(make):
    """Marks a function whose table or figure shows times or speeds: its caption names the machine."""
    make.timed = True
    return make


def shows(*columns: Column):
    """Gives a function that makes a table the columns that the page shows of it."""

    def declare(make):
        make.columns = columns
        return make

    return declare
