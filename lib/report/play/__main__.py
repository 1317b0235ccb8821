"""`python -m lib.report.play`: see build.py."""

import sys

from lib.report.play.build import main

if __name__ == "__main__":
    sys.exit(main())
