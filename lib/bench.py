"""`python -m lib.bench`: see lib/runs/bench.py."""

import sys

from lib.runs.bench import main

if __name__ == "__main__":
    sys.exit(main())
