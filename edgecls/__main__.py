"""`python -m edgecls`, which is also what `accelerate launch --module edgecls train ...` starts on every GPU."""

import sys

from edgecls.cli import main

if __name__ == "__main__":
    sys.exit(main())
