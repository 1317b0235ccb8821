"""`python -m lib.bench`: see lib/runs/bench.py."""

from lib.runs.bench import main

if __name__ == "__main__":
    main()
