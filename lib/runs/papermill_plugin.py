"""Makes `papermill notebooks/train.ipynb -p kernel 9` work as typed.

papermill loads this module through an entry point. Of its calls for this repository's notebooks, and of no others, it
- runs the notebook with this environment's Python and this folder's lib,
- makes the folder for the executed notebook,
- reduces an error that the user can mend to its one line;
and where it is the training notebook, it
- checks the parameters before a kernel starts: one line and exit status 2 instead of a run with the defaults,
- passes every parameter, so that a value saved in the notebook's cell is not one that nobody sees on the command line,
- gives the executed notebook a place beside the record where the call names none, and says so on stderr,
- shows at a terminal how far the training is, or its own lines where that is written to a file.
"""

import base64
import contextlib
import dataclasses
import logging
import os
import sys
from pathlib import Path

import click
import yaml
from nbclient.exceptions import DeadKernelError
from nbformat.reader import NotJSONError
from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillException, PapermillExecutionError

from lib import kernel, records
from lib.params import ParameterError, Params, UserError, assigned
from lib.runs import progress
from lib.study import ROOT, of_runs, parse_yaml, read_yaml

NOTEBOOK = ROOT / "notebooks" / "train.ipynb"
AGAIN = "train-again.ipynb"
PARAMETERS = ("base64", "file", "yaml", "", "raw")  # papermill's options for them, a later one over an earlier one


class KernelError(UserError):
    """The kernel did not start: why, as far as it said so."""


class KernelKilled(KernelError):
    """The kernel died, not of itself."""


class Engine(NBClientEngine):
    """papermill's usual engine with a kernel of ours. Raises KernelError, and before a kernel starts UserError."""

    @classmethod
    def execute_notebook(cls, nb, kernel_name, **options):
        given = nb.metadata.papermill.get("parameters", {})
        tags = [cell.metadata.get("tags", ()) for cell in nb.cells]
        if given and sum("parameters" in tag for tag in tags) != 1:  # what is given must come after the defaults
            raise UserError("not one cell has the tag `parameters`; `git checkout notebooks` brings it back")
        for cell, tag in zip(nb.cells, tags, strict=True):
            if cell.cell_type == "code" and not {"parameters", "injected-parameters"}.intersection(tag):
                for name in given.keys() & set(assigned(cell.source)):
                    raise UserError(f"another cell than the first sets {name} too; give it with -p instead")
        return super().execute_notebook(nb, kernel.NAME, **options)

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        # asyncio would print the trace of what was waiting for a kernel's answer, if it is gone by then.
        logging.getLogger("asyncio").addFilter(not_the_end_of_a_kernel)
        with kernel.kernel() as ours:
            try:
                # All that counts is on the disk by then; a kernel that may clean up takes a second or two.
                options |= {"kernel_manager_class": ours, "shutdown_kernel": "immediate"}
                return super().execute_managed_notebook(nb_man, kernel_name, **options)
            except DeadKernelError:
                raise KernelKilled(f"the kernel was killed{ours.last_words()}") from None
            except RuntimeError as error:  # jupyter_client's, of a kernel that has never answered
                raise KernelError(f"the kernel did not start: {error}{ours.last_words()}") from None


def not_the_end_of_a_kernel(record: logging.LogRecord) -> bool:
    """A filter of log records: what ends a notebook because its kernel is dead is said by `Engine`, in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], DeadKernelError))


_invoke = click.Command.invoke


def invoke(command: click.Command, context: click.Context):
    """click's own, which calls a program with the options that it has read: papermill's, as described above."""
    notebook = Path(context.params.get("notebook_path") or "-").resolve()
    ours = getattr(command.callback, "__module__", "") == "papermill.cli" and not context.params["help_notebook"]
    if not ours or not (notebook.is_relative_to(ROOT) or _elsewhere(notebook)):
        return _invoke(command, context)
    status, line, hint = 1, "", "; the same command goes on" if notebook == NOTEBOOK else ""
    elsewhere = context.params["log_output"] or context.params["stdout_file"]
    try:
        with progress.shown() if notebook == NOTEBOOK and not elsewhere else contextlib.nullcontext():
            prepare(notebook, context.params)
            return _invoke(command, context)
    except ParameterError as error:
        status, line = 2, str(error)
    except KernelKilled as error:
        memory = "; if it was for want of memory, lower batch_size, dim or depth, or raise patch" if hint else ""
        line = f"{error}{memory}{hint}"
    except KeyboardInterrupt:
        status, line = 130, f"interrupted{hint}"
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            status, line = 130, f"interrupted{hint}"
        elif len(error.traceback) == 1:  # see run.one_line_errors
            line = error.evalue
        else:
            raise
    except OSError as error:
        line = f"{error.filename or 'the executed notebook'}: {error.strerror}" if error.errno else str(error)
    except (UserError, PapermillException, NotJSONError) as error:
        line = str(error)
    print(f"{notebook.name}: {line}", file=sys.stderr)
    raise SystemExit(status)


click.Command.invoke = invoke  # type: ignore[method-assign, assignment]


def prepare(notebook: Path, options: dict) -> None:
    """Changes papermill's options, by their names in its function; ParameterError for parameters that cannot be."""
    if not notebook.is_relative_to(ROOT):
        raise ParameterError(
            f"this papermill is the one of {ROOT}; `make setup` gives {_elsewhere(notebook)} its own, in .venv"
        )
    options |= {"kernel": kernel.NAME, "language": kernel.LANGUAGE, "engine": kernel.ENGINE}
    output = options["output_path"]
    if notebook == NOTEBOOK:
        params = Params.of(**_parameters(options))
        options |= {f"parameters_{name}".rstrip("_"): () for name in PARAMETERS}
        options["parameters_yaml"] = (yaml.safe_dump(dataclasses.asdict(params)),)
        if not output:
            folder = records.run_folder(params)
            # Of a finished run nothing is trained again, and the notebook that trained it has more to say.
            done = (folder / records.RESULT).exists() and not params.force
            name = AGAIN if done else records.NOTEBOOK
            options["output_path"] = output = str(folder / name)
            print(f"{notebook.name}: no output path given, the executed notebook goes to {output}", file=sys.stderr)
        if not (options["log_output"] or options["stdout_file"]):
            live = os.environ.get(kernel.PROGRESS)  # then what sys.stdout is given stands above the line
            shown = sys.stdout if live else click.open_file("-", "w", encoding="utf-8")
            options |= {"progress_bar": False, "stdout_file": shown, "stderr_file": shown}
    if output and not set(output) & set("{:"):  # neither a pattern nor an address
        Path(output).parent.mkdir(parents=True, exist_ok=True)


def _parameters(options: dict) -> dict:
    """What the call gives, read as strictly as a study's file."""
    values = {}
    for text in options["parameters_base64"]:
        try:
            text = base64.b64decode(text).decode()
        except ValueError as error:
            raise ParameterError(f"-b: {error}") from None
        values |= of_runs(parse_yaml(text, "-b"))
    for path in options["parameters_file"]:
        values |= of_runs(read_yaml(Path(path)))
    for text in options["parameters_yaml"]:
        values |= of_runs(parse_yaml(text, "-y"))
    return values | dict(options["parameters"]) | dict(options["parameters_raw"])


def _elsewhere(notebook: Path) -> Path | None:
    """The folder of another copy of this project, if the notebook is in one."""
    folder = notebook.parent.parent
    return folder if folder != ROOT and (folder / Path(__file__).relative_to(ROOT)).exists() else None
