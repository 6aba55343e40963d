"""``python -m minispec``: the command line."""

import sys

from minispec.tools.cli.main import main

sys.exit(main())
