"""A copy of the repository in a folder of its own, for tests that start real processes: they write reports there."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

from lib.study import ROOT


class Copy:
    """The repository's source at another place, and how to start its programs there."""

    def __init__(self, root: Path):
        self.root = root
        for part in ("lib", "notebooks", "params"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
        (root / "reports").mkdir()
        (root / "data").symlink_to(ROOT / "data")
        # Before the installed package, so that `import lib` finds the copy's, whatever the folder.
        self.environment = {**os.environ, "PYTHONPATH": str(root)}

    def command(self, *words: str) -> list[str]:
        """A program of the virtual environment: "papermill ...", or "python -m ..."."""
        program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
        return [program, *words[1:]]

    def run(self, *words: str, folder: str = ".", timeout: float = 600) -> subprocess.CompletedProcess:
        """Runs a program to its end, with no terminal; its output as text."""
        return subprocess.run(
            self.command(*words), cwd=self.root / folder, env=self.environment, timeout=timeout,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip

    def at_terminal(
        self, *words: str, folder=".", columns=100, until=b"", timeout=240, **environment
    ) -> tuple[int, str]:
        """Runs a program at a pseudo-terminal; its exit status and all that it wrote, up to the word `until`."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30 if columns else 0, columns, 0, 0))
        variables = {name: value for name, value in self.environment.items() if name not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            self.command(*words), cwd=self.root / folder, env={**variables, "TERM": "xterm", **environment},
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
                if until and until in shown:
                    process.terminate()
                    break
        except OSError:
            pass  # the terminal of a program that has ended
        os.close(ours)
        return process.wait(timeout), shown.decode()
