import sys

from lib.runs.all_runs import main

if __name__ == "__main__":
    sys.exit(main())
