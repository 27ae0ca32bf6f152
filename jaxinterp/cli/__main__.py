"""`python -m jaxinterp.cli`."""

import sys

from jaxinterp.cli._main import main

if __name__ == "__main__":
    sys.exit(main())
