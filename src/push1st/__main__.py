"""Runs the command line: `python -m push1st`."""

import sys

from push1st.cli import main

sys.exit(main())
