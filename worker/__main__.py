"""``python -m worker run | api | migrate | import | request-run | runs | dead-letters | doctor | …``."""

import sys

from worker.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
