"""ConvMixer on CIFAR-10: see README.md."""

import os
import sys

# Whatever else lies in this repository's folder, a yaml.py perhaps, must not hide a package: the folder comes last.
root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
others = [path for path in sys.path if os.path.realpath(path) != root]
if len(others) < len(sys.path):
    sys.path[:] = [*others, root]

# OpenMP reads these when torch is loaded. The first four tie the process to its first core, with all threads that the
# native layers and the data workers start later; the others let fewer threads run than were asked for. How many there
# are is OMP_NUM_THREADS's alone to say, and nothing else about threads is left to what a shell happens to hold.
for name in (
    "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET",
    "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_DOMAIN_NUM_THREADS",
):  # fmt: skip
    os.environ.pop(name, None)

# A thread that waits for the others of its team spins, in libgomp for 3 ms unless told otherwise. Where anything else
# runs on the same processors, that keeps the awaited one from running: beside another training one fell to a tenth of
# its speed. 1000 turns are some ten microseconds; alone, a training loses 5 % of its speed to that at 256/8 and 13 % at
# the smallest networks.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
