"""`python -m gacd` and the command `gacd`."""

import sys

from gacd.cli import main


def run() -> None:
    sys.exit(main())


if __name__ == "__main__":
    run()
