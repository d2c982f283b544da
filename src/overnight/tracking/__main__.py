"""`python -m overnight.tracking JOB`: what `beside` starts."""

import sys

from overnight.tracking.sender import main

if __name__ == "__main__":
    sys.exit(main())
