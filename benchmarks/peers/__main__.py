"""python -m benchmarks.peers: the same as python -m benchmarks peers."""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["peers", *sys.argv[1:]]))
