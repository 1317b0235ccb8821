"""`make test-faults`, or `python tests/faults [NUMBER ...]`: provokes each fault and prints a line about it.

A line: the number, pass or fail, the fault, what was done, what was seen. Then the tracebacks of what failed, and how
many faults passed and failed. Exit status 1 if any failed.
"""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from table import FAST, FAULTS

HERE = Path(__file__).resolve().parent
SHOWN = 5  # of what several tests of one kind have seen


class Lines:
    """Picks the tests that belong to faults, runs them in the order of the faults, prints a line for each fault."""

    def __init__(self, out, wanted: list[int]):
        self.out, self.wanted = out, wanted
        self.waiting: dict[int, list[str]] = {number: [] for number in wanted}  # nodes that have not run yet
        self.lines = {number: {"done": {}, "seen": [], "fast": [], "verdicts": set()} for number in wanted}
        self.numbers, self.failures = {}, []

    def pytest_collection_modifyitems(self, config, items):
        unused = {(number, *check) for number in self.wanted for check in FAST.get(number, ())}
        for item in items:
            marks = {mark.args[0]: mark.args[1] for mark in item.iter_markers("fault")}
            found = {(n, *check) for n in self.wanted for check in FAST.get(n, ()) if is_of(item, *check)}
            unused -= found
            marks |= {number: f"tests/{file}" for number, file, _ in found}
            self.numbers[item.nodeid] = numbers = [number for number in self.wanted if number in marks]
            for number in numbers:
                self.waiting[number].append(item.nodeid)
                self.lines[number]["done"][marks[number]] = None
        items[:] = sorted((i for i in items if self.numbers[i.nodeid]), key=lambda i: self.numbers[i.nodeid][0])
        for number, file, part in unused:
            self.note(number, "fail", f"there is no test of {part} in tests/{file}")

    def pytest_runtest_logreport(self, report):
        for number in self.numbers[report.nodeid]:
            if report.failed:
                where = report.longrepr.reprcrash if hasattr(report.longrepr, "reprcrash") else report.longrepr
                self.note(number, "fail", str(getattr(where, "message", where)).splitlines()[0][:200])
            elif report.skipped:
                self.note(number, "not tested here", report.longrepr[2].removeprefix("Skipped: "))
            elif report.when == "call":
                seen = [value for name, value in report.user_properties if name == "seen"]
                told = [text for fault, text in seen if fault in (None, number)]
                self.note(number, "pass", *told)
                self.lines[number]["fast"] += [] if seen else [sentence(report.nodeid)]
        if report.failed:
            self.failures.append(f"{report.nodeid} ({report.when})\n{report.longreprtext}")

    def pytest_runtest_logfinish(self, nodeid):
        for number in self.numbers[nodeid]:
            self.waiting[number].remove(nodeid)
            if not self.waiting[number]:
                self.print(number)

    def pytest_report_teststatus(self, report):
        return "", "", ""  # instead of pytest's dots

    def note(self, number: int, verdict: str, *seen: str) -> None:
        self.lines[number]["verdicts"].add(verdict)
        self.lines[number]["seen"] += [text if verdict == "pass" else f"{verdict}: {text}" for text in seen]

    def verdict(self, number: int) -> str:
        verdicts = self.lines[number]["verdicts"]
        return next((word for word in ("fail", "pass", "not tested here") if word in verdicts), "fail")

    def print(self, number: int) -> None:
        line = self.lines[number]
        seen = [*few(line["seen"]), *few(line["fast"])]
        text = f"{FAULTS[number]} | done: {'; '.join(line['done']) or 'nothing'} | seen: {'; '.join(seen)}"
        print(f"{number:2}  {self.verdict(number)}  {text}", file=self.out, flush=True)

    def finish(self) -> int:
        """What failed and the count; the exit status."""
        for number in self.wanted:
            if not self.lines[number]["done"]:
                self.note(number, "fail", "there is no test of it")
                self.print(number)
        for failure in self.failures:
            print(f"\n{failure}", file=self.out)
        verdicts = [self.verdict(number) for number in self.wanted]
        if skipped := verdicts.count("not tested here"):
            print(f"{skipped} not tested here", file=self.out)
        print(f"{verdicts.count('pass')} passed, {verdicts.count('fail')} failed", file=self.out, flush=True)
        return int("fail" in verdicts)


def is_of(item, file: str, part: str) -> bool:
    return item.path.name == file and item.path.parent == HERE.parent and part in item.name


def few(texts: list[str]) -> list[str]:
    texts = list(dict.fromkeys(texts))
    return texts[:SHOWN] + ([f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])


def sentence(nodeid: str) -> str:
    """The fast tests' names are sentences; of a parametrised one, what it was given."""
    name, _, given = nodeid.split("::")[-1].partition("[")
    words = name.removeprefix("test_").replace("_", " ")
    return re.sub(r"^\w+?\d+-", "", given.rstrip("]")) if ": " in given else words


def main(arguments: list[str]) -> int:
    wanted = sorted(map(int, arguments)) or list(FAULTS)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:  # nohup, &: the processes that are tested would inherit it
            signal.signal(number, lambda *_: None)
    lines = Lines(os.fdopen(os.dup(1), "w"), wanted)
    files = sorted({str(HERE.parent / file) for number in wanted for file, _ in FAST.get(number, ())})
    options = ["-qq", "--no-header", "--no-summary", "-o", "console_output_style=classic", "-p", "no:cacheprovider"]
    status = pytest.main([*options, str(HERE), *files], plugins=[lines])
    return lines.finish() or int(status not in (0, 1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
