"""`python -m lib.report.readme`: writes the README's results from the published records."""

import sys

import pandas as pd

from lib import records
from lib import study as studies
from lib.files import write_bytes
from lib.report import claims, front, published, sentences, tables
from lib.report.columns import interval
from lib.report.figures import both_ablations
from lib.study import ROOT

README = ROOT / "README.md"
START, END = "<!-- results: written by `python -m lib.report.readme` -->", "<!-- end of results -->"


def block() -> str:
    """The main figure, ours against theirs as a table, then what was found and how fast training is, as Markdown."""
    evidence = claims.Evidence()
    main = front.main_study(evidence)
    if main is None:
        return "No study is finished yet: `make report` trains one."
    runs = {name: evidence.runs(name) for name in ("paper", main)}
    cells_of = {name: pd.concat([tables.kernel(table), tables.patch(table)]) for name, table in runs.items()}
    cells_of = {name: table for name, table in cells_of.items() if table["n"].any()}
    head = ["setting", *(_head(name) for name in cells_of), "the paper (%)", "the original (%)"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kernel, patch in published.PARAMETERS:
        ours = [_ours(table[(table["kernel"] == kernel) & (table["patch"] == patch)]) for table in cells_of.values()]
        theirs = " / ".join(f"{figure:.2f}" for figure in published.all_printed(kernel, patch))
        original = published.original(kernel, patch).accuracy
        lines.append(f"| {' | '.join([f'k={kernel}, p={patch}', *ours, theirs, f'{original:.2f}'])} |")
    picture = f"![{both_ablations(runs[main]).get_label()}](reports/published/{main}/figures/both-ablations.png)"
    said = [*front.found(evidence), *(f"In `{main}` {text}" for text in sentences.compute(runs[main])[:1])]
    said += [" ".join(sentences.speed(bench)[:2]) for bench in records.benches()[:1]]
    return "\n".join([picture, "", *lines, "", *(f"- {line}" for line in said)])


def _head(name: str) -> str:
    """What a column of ours is: which study, which network, how many epochs."""
    p = studies.load(name).base
    return f"ours, `{name}`: {p.dim}/{p.depth}, {p.epochs} epochs (%)"


def _ours(rows: pd.DataFrame) -> str:
    """The first of the rows of one configuration as a cell: 61.23 ± 0.45 (n=3), or what became of its runs."""
    if rows.empty or not rows.iloc[0]["n"]:
        return "not run" if rows.empty or rows.iloc[0]["status"] == "missing" else rows.iloc[0]["status"]
    row = rows.iloc[0]
    return f"{row['ours']:.2f}{interval(row['half'])} (n={row['n']})"


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
