"""The server, with a supervisor that asks more often whether its children are there: run as a program."""

import sys

from push1st import cli, engine, supervisor

if __name__ == "__main__":
    supervisor.BEAT_SECONDS = engine.BEAT_SECONDS = 0.3
    sys.exit(cli.main())
