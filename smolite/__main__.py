"""`python -m smolite VERB`, the same as `smolite VERB`."""

import sys

from smolite.cli import main

if __name__ == "__main__":
    sys.exit(main())
