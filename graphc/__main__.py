"""`python -m graphc` is the `graphc` command."""

import sys

from graphc.tools.command import main

sys.exit(main())
