"""Runs every campaign of this folder and prints one table; see `campaigns`."""

import sys

from campaigns import run_all

if __name__ == "__main__":
    sys.exit(run_all(sys.argv[1:]))
