"""The kernels that this project starts, for runs and reports: this Python and this folder's lib, nobody's settings.

What the user's shell, editor or home folder holds for other Pythons and other notebooks does not reach them.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from lib.study import ROOT

# Whatever a notebook's metadata say; and the engine of papermill that starts it, as pyproject.toml names it.
NAME, LANGUAGE, ENGINE = "python3", "python", "convmixer-cifar10"
PROGRESS = "CONVMIXER_PROGRESS"  # where a run says how far it is, see runs/progress.py; empty: in lines
FOREIGN = ("PYTHON", "IPYTHON", "JUPYTER", "MPLBACKEND", "MATPLOTLIBRC")  # how variables begin that are not for us


def environment() -> dict[str, str]:
    """The variables for a Python that is started here: it finds this folder's lib, whatever folder it is started in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}


class Kernel(AsyncKernelManager):
    """Starts this Python, also if the user has another kernel of the same name. Its settings are those in `folder`."""

    folder: Path  # empty: no settings

    @property
    def kernel_spec(self):
        start = "import lib; from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
        return KernelSpec(argv=[sys.executable, "-c", start, "-f", "{connection_file}"], language=LANGUAGE)

    async def start_kernel(self, **options):  # type: ignore[override]  # a coroutine, as its own is
        self.connection_file = str(self.folder / "connection.json")
        plain = Path(str(importlib.util.find_spec("matplotlib").origin)).with_name("mpl-data") / "matplotlibrc"
        variables = {PROGRESS: "", **environment(), "IPYTHONDIR": str(self.folder), "MATPLOTLIBRC": str(plain)}
        # It would say that its sockets are not encrypted, and print its own loop where it is interrupted; and IPython
        # would put the folder in which it is started back on the path.
        arguments = ["--log-level=CRITICAL", "--InteractiveShellApp.ignore_cwd=True"]
        options["extra_arguments"] = [*options.get("extra_arguments", ()), *arguments]
        with (self.folder / "said").open("wb") as said:
            await super()._async_start_kernel(**{**options, "env": variables, "stderr": said})

    @classmethod
    def last_words(cls) -> str:
        """The last line that it wrote on stderr by itself, in brackets, or nothing."""
        said = (cls.folder / "said").read_text(errors="replace").split("\n") if (cls.folder / "said").exists() else []
        return next((f" ({line.strip()})" for line in reversed(said) if line.strip()), "")


@contextlib.contextmanager
def kernel() -> Iterator[type[Kernel]]:
    """A kernel with a folder of its own, which goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as folder:
        yield type("Kernel", (Kernel,), {"folder": Path(folder)})
