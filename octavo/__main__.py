"""`python -m octavo` is `octavo`."""

import sys

from octavo.cli.entry import main

sys.exit(main())
