"""`python -m lib.report.readme`: writes the README's results from the records of one study."""

import sys

import pandas as pd

from lib import records
from lib import study as studies
from lib.records import write_bytes
from lib.report import published, sentences, tables
from lib.study import ROOT

STUDY = "quick"
README = ROOT / "README.md"
START, END = "<!-- results: written by `python -m lib.report.readme` -->", "<!-- end of results -->"


def block() -> str:
    """Ours against theirs as Markdown: a table of both ablations, then the report's sentences, at last the speed."""
    study = studies.load(STUDY)
    runs = records.load(study)
    both = pd.concat([tables.kernel(runs), tables.patch(runs)]).drop_duplicates(["kernel", "patch"])
    lines = [
        "| setting | ours, `quick` (%) | n | the paper (%) | the original, as the paper quotes it (%) |",
        "|---|---|---|---|---|",
    ]
    for row in both.itertuples():
        ours = f"{row.ours:.2f}" if row.n else row.status
        theirs = " / ".join(f"{figure:.2f}" for figure in published.all_printed(row.kernel, row.patch))
        lines.append(f"| k={row.kernel}, p={row.patch} | {ours} | {row.n} | {theirs} | {row.original:.2f} |")
    said = [study.purpose, *sentences.budget(study), *sentences.comparable(study)]
    bench = records.read_bench()
    speed = (
        ["", " ".join([*sentences.speed(bench), *sentences.duration(studies.load("paper"), bench)])] if bench else []
    )
    return "\n".join([*lines, "", " ".join(said), "", *(f"- {line}" for line in sentences.short(study, runs)), *speed])


def filled(text: str) -> str:
    """The README's text with its results as the records have them."""
    before, rest = text.split(START)
    return f"{before}{START}\n{block()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrites README.md; its exit status."""
    write_bytes(README, filled(README.read_text(encoding="utf-8")).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
