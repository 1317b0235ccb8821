"""Makes `papermill notebooks/train.ipynb -p kernel 9` work as typed.

papermill loads this module through an entry point before it reads its arguments. For this repository's training
notebook, and for nothing else, it
- checks the parameters before a kernel starts: one line and exit status 2 instead of a run with the defaults,
- gives the executed notebook a place beside the record where the call names none, and says so on stderr,
- shows the training's own lines in the terminal,
- reduces an error that the user can mend to its one line.
"""

import argparse
import base64
import logging
import sys
from pathlib import Path

from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lib import records
from lib.params import Params
from lib.study import ROOT, parse_yaml, read_yaml

NOTEBOOK = ROOT / "notebooks" / "train.ipynb"

GOES_ON = "the same command goes on from the last checkpoint"


class Engine(NBClientEngine):
    """papermill's usual engine, without what its kernel says of itself (that its sockets are not encrypted)."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        # A kernel that is interrupted would print the trace of its own loop too,
        options.setdefault("extra_arguments", ["--log-level=CRITICAL"])
        # and asyncio, if the kernel is gone by then, that of what was waiting for its answer.
        logging.getLogger("asyncio").addFilter(not_the_end_of_a_kernel)
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **options)
        except KeyboardInterrupt:  # papermill makes it "Aborted!"
            print(f"train.ipynb: interrupted; {GOES_ON}", file=sys.stderr)
            raise
        except DeadKernelError:  # papermill would show its whole trace
            hint = "if it was for want of memory, lower batch_size, dim or depth, or raise patch"
            print(f"train.ipynb: the kernel was killed ({hint}); {GOES_ON}", file=sys.stderr)
            raise SystemExit(138) from None


def not_the_end_of_a_kernel(record: logging.LogRecord) -> bool:
    """A filter of log records: what ends a notebook because its kernel is dead is said by `Engine`, in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], DeadKernelError))


def prepare(argv: list[str]) -> list[str]:
    """The command line as papermill should see it; SystemExit(2) for parameters that cannot be."""
    try:
        call, _ = _parser().parse_known_intermixed_args(argv[1:])
    except argparse.ArgumentError as error:
        if not any(Path(word).resolve() == NOTEBOOK for word in argv[1:]):
            return argv  # for papermill to complain of
        print(f"train.ipynb: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not call.paths or Path(call.paths[0]).resolve() != NOTEBOOK or call.help:
        return argv
    sys.excepthook = _one_line
    papermill_engines.register(None, Engine)
    try:
        params = Params.of(**_parameters(call))
    except ValueError as error:  # a ParameterError, or no base64
        print(f"train.ipynb: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # Every name has been checked: papermill's own warning would name only what a study's file says about its runs.
    logging.getLogger("papermill").addFilter(lambda record: "unknown parameter" not in record.getMessage())
    if len(call.paths) < 2:
        output = records.run_folder(params) / records.NOTEBOOK
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"train.ipynb: {output.parent}: {error.strerror}; nothing was trained", file=sys.stderr)
            raise SystemExit(2) from None
        print(f"train.ipynb: no output path given, the executed notebook goes to {output}", file=sys.stderr)
        # Right behind the notebook: papermill takes the first two words without a dash, wherever they stand.
        at = argv.index(call.paths[0], 1) + 1
        argv = [*argv[:at], str(output), *argv[at:]]
    if not (call.log_output or call.stdout_file):
        argv = [*argv, "--no-progress-bar", "--stdout-file", "-", "--stderr-file", "-"]
    return argv


def _parameters(call: argparse.Namespace) -> dict:
    """What the call gives, later ones over earlier ones in papermill's own order."""
    values = {}
    for text in call.parameters_base64 or []:
        values |= parse_yaml(base64.b64decode(text).decode(errors="replace"), "-b") if text else {}
    for path in call.parameters_file or []:
        values |= read_yaml(Path(path))
    for text in call.parameters_yaml or []:
        values |= parse_yaml(text, "-y")
    values |= dict(call.parameters or [])
    return values | dict(call.parameters_raw or [])


def _parser() -> argparse.ArgumentParser:
    """papermill's own options, as far as they tell the words that are paths from the words that are values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("-p", "--parameters", nargs=2, action="append")
    parser.add_argument("-r", "--parameters_raw", nargs=2, action="append")
    parser.add_argument("-f", "--parameters_file", action="append")
    parser.add_argument("-y", "--parameters_yaml", action="append")
    parser.add_argument("-b", "--parameters_base64", action="append")
    parser.add_argument(
        "-h", "--help", "--help-notebook", "--version", "--prepare-only", dest="help", action="store_true"
    )
    parser.add_argument("--log-output", action="store_true")
    parser.add_argument("--stdout-file")
    for option in ("-k", "-l"):
        parser.add_argument(option, dest="ignored")
    for option in ("kernel", "language", "engine", "cwd", "autosave-cell-every", "stderr-file", "log-level",
                   "start-timeout", "start_timeout", "execution-timeout"):  # fmt: skip
        parser.add_argument(f"--{option}", dest="ignored")
    return parser


def _one_line(kind: type, error: BaseException, trace) -> None:
    """sys.excepthook: what a user can mend as one line, anything else as Python shows it."""
    if isinstance(error, PapermillExecutionError) and len(error.traceback) == 1:  # see run.one_line_errors
        print(f"train.ipynb: {error.evalue}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt) or getattr(error, "ename", "") == "KeyboardInterrupt":
        print(f"train.ipynb: interrupted; {GOES_ON}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno is not None:
        print(f"train.ipynb: {error.filename or 'the executed notebook'}: {error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# `python -m papermill` leaves "-m" here while it imports the package.
if Path(sys.argv[0]).name in ("papermill", "papermill.exe") or sys.orig_argv[1:3] == ["-m", "papermill"]:
    sys.argv = prepare(sys.argv)
