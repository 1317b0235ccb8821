"""`make test-slurm`: `make submit` on a SLURM that runs on this machine. Finds or installs it, then runs pytest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from one_machine import PROGRAMS, found

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """pytest's exit status, or 2 and a line that says what is missing."""
    if missing := [program for program in PROGRAMS if not found(program)]:
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]
        if os.geteuid() or not shutil.which("apt-get"):
            print(f"test-slurm: no {missing[0]} here; install Debian's slurm-wlm and munge", file=sys.stderr)
            return 2
        print(f"no {missing[0]} here: {' '.join(install)}", flush=True)
        if subprocess.run(install, stdout=subprocess.DEVNULL).returncode or not all(map(found, PROGRAMS)):
            print("test-slurm: they could not be installed (`apt-get update` first?)", file=sys.stderr)
            return 2
    return pytest.main([str(HERE), "-p", "no:cacheprovider", "--verbose", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
