"""`push1st version`."""

import sys

import push1st
from push1st.cli.arguments import Arguments


def run(_options: Arguments) -> int:
    """Prints the versions of the package and of Python."""
    print(f"push1st {push1st.__version__} (Python {sys.version.split()[0]})")
    return 0
