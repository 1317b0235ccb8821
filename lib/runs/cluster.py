"""A study on a cluster: its unfinished runs as one job array of SLURM, and what the queue says about them. No torch.

SLURM decides when and where. A task is `python -m lib.runs STUDY --run NAME`, which takes a GPU or cores as it finds
them, goes on from its checkpoint when it is started again, and has its record, or its failure, in the run's folder.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from lib import files, records
from lib.data import datasets
from lib.params import UserError
from lib.runs.lock import holder
from lib.study import ROOT, Run, Study, shown

LOG = "slurm.log"  # in a run's folder: what its tasks have printed, one after another
UNCONFIGURED = "configuration source"  # what SLURM's programs lack where there is no cluster
COMMENT = 1024  # bytes, the longest that SLURM takes
CPUS = 4  # a task, where CPUS says nothing and the nodes have as many
# Variables of `make submit`, as options of sbatch; SLURM has its own for all the others, such as SBATCH_QOS.
OPTIONS = {"PARTITION": "--partition=", "ACCOUNT": "--account=", "TIME": "--time=", "CPUS": "--cpus-per-task=",
           "GPUS": "--gres=gpu:"}  # fmt: skip

# On a node: the same folders at the same paths. Its share of the cores may be less than what a process finds there.
TASK = """#!/bin/bash
runs=({runs})
run=${{runs[$SLURM_ARRAY_TASK_ID]}}
exec >> {folder}/runs/"$run"/{log} 2>&1
echo "$(date): task ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID on $(hostname)"
export PYTHONPATH={root} OMP_NUM_THREADS=$SLURM_CPUS_ON_NODE
exec {python} -m lib.runs {study} --run "$run"
"""


class ClusterError(UserError):
    """SLURM is not here, or has refused something: its own words."""


def submit(study: Study) -> int:
    """Hands SLURM each run that is neither finished nor refused nor under way, in the study's order; an exit status.

    Raises ClusterError, DataError, RecordError.
    """
    if not shutil.which("sbatch"):
        raise ClusterError(f"no SLURM here (sbatch); `make runs STUDY={study.name}` trains on this machine")
    records.study_folder(study.name).mkdir(parents=True, exist_ok=True)
    with files.lock(records.study_folder(study.name) / ".submit"):
        table, queued = records.load(study).set_index("run"), queue(study)
        refused = [run for run in study.runs if table.status[run.name] == "refused"]
        left = [run for run in study.runs if table.status[run.name] not in ("done", "refused")]
        todo = [run for run in left if run.name not in queued and not holder(records.folder_of(study.name, run.name))]
        for run in refused:
            print(table.reason[run.name], file=sys.stderr)
        if todo:
            data = datasets.load(study.base)  # here, once: a node may reach no other machine
            records.refuse_changed(study, data.digest)
            for part in parts(study, todo):
                print(f"{study.name}: job {sbatch(study, part)} trains {', '.join(run.name for run in part)}")
    done = len(study.runs) - len(left) - len(refused)
    print(f"{study.name}: {len(todo)} runs submitted, {len(left) - len(todo)} under way before, {done} finished")
    return 1 if refused else 0


def sbatch(study: Study, todo: list[Run]) -> str:
    """The number of a new job array that trains these runs, one a task."""
    given = {**defaults(), **{name: os.environ[name] for name in OPTIONS if os.environ.get(name)}}
    options = [option + given[name] for name, option in OPTIONS.items() if name in given]
    options += [f"--array=0-{len(todo) - 1}", f"--job-name={study.name}", f"--comment={mark(study, todo)}"]
    options += ["--requeue", "--export=ALL", f"--chdir={ROOT}", "--output=/dev/null", "--nodes=1", "--ntasks=1"]
    for run in todo:
        records.folder_of(study.name, run.name).mkdir(parents=True, exist_ok=True)
    words = {"folder": records.study_folder(study.name), "root": ROOT, "python": sys.executable, "study": study.name}
    names = shlex.join(run.name for run in todo)
    script = TASK.format(runs=names, log=LOG, **{name: shlex.quote(str(word)) for name, word in words.items()})
    return slurm("sbatch", "--parsable", *options, script=script).partition(";")[0].strip()


def parts(study: Study, todo: list[Run]) -> Iterator[list[Run]]:
    """The runs in as many arrays as it takes for SLURM to accept the comment of each."""
    part: list[Run] = []
    for run in todo:
        if part and len(mark(study, [*part, run]).encode()) > COMMENT:
            yield part
            part = []
        part.append(run)
    yield part


def defaults() -> dict[str, str]:
    """CPUs and GPUs of a task in the partition that it goes to: one GPU where there are any."""
    wanted = os.environ.get("PARTITION") or os.environ.get("SBATCH_PARTITION")
    only = [f"--partition={wanted}"] if wanted else []
    lines = [line.split("|") for line in slurm("sinfo", "--noheader", "--format=%P|%G|%c", *only).splitlines()]
    kinds = [(gres, int(cpus.rstrip("+"))) for name, gres, cpus in lines if wanted or name.endswith("*")]
    most = max((cpus for _, cpus in kinds), default=1)
    gpu = {"GPUS": "1"} if any("gpu" in gres for gres, _ in kinds) else {}
    return {"CPUS": str(min(CPUS, most)), **gpu}


def mark(study: Study, runs: Sequence[Run] = ()) -> str:
    """A job's comment, by which it is known again: where its records go, and the run of each task in their order."""
    return " ".join([f"{records.study_folder(study.name)}:", *(run.name for run in runs)])


def queue(study: Study) -> dict[str, str]:
    """What SLURM's queue says of each run in it: `12_3 running`, `12_4 pending (Priority)`; none without SLURM.

    Its programs may be installed where no cluster is: then they name none, and there is no queue either.
    """
    asked = ("--noheader", "--array", f"--name={study.name}", "--format=%F|%K|%T|%r|%k")
    found = {}
    try:
        listed = slurm("squeue", *asked) if shutil.which("squeue") else ""
    except ClusterError as error:
        if UNCONFIGURED not in str(error):
            raise
        listed = ""
    for line in listed.splitlines():
        job, task, state, reason, comment = line.split("|", 4)
        if comment.startswith(mark(study)):
            run = comment.removeprefix(mark(study)).split()[int(task)]
            found[run] = f"{job}_{task} {state.lower()}" + (f" ({reason})" if reason != "None" else "")
    return found


def slurm(*command: str, script: str = "") -> str:
    """What a program of SLURM prints; ClusterError with its last words if it fails."""
    done = subprocess.run(command, input=script, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip() or f"{command[0]} ended with status {done.returncode}"
        raise ClusterError(said.splitlines()[-1])
    return done.stdout


def last_words(run: Run) -> str:
    """Where the log of a run's tasks is and its last line, for a run that they left unfinished; empty without one."""
    path = records.folder_of(run.params.study, run.name) / LOG
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return f"its task ended without a record; {shown(path)}: {text.splitlines()[-1]}" if text else ""
