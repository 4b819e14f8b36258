"""`push1st reload`: makes a running supervisor read the configuration again, and waits until the workers are replaced."""

import contextlib
import os
import signal
import sys
import time

from push1st.cli.arguments import Arguments
from push1st.printable import printable
from push1st.process import rundir

POLL_SECONDS = 0.1
"""the time between two reads of the reload's progress"""


def run(options: Arguments) -> int:
    """Sends SIGHUP to the supervisor and prints the progress of the reload; returns 1 if a worker was not replaced."""
    found = rundir.running(options.config)
    if len(found) != 1:
        which = f" with {options.config}" if options.config else ""
        whose = "this user" if os.getuid() else "any user"
        if found:
            pids = ", ".join(map(str, found))
            print(f"push1st reload: several servers run{which}: {pids}. Say which: -c FILE, or kill -HUP PID", file=sys.stderr)
        else:
            print(
                f"push1st reload: nothing was reloaded: no server of {whose} with several workers runs{which}. "
                "One worker cannot be replaced while it serves: restart it",
                file=sys.stderr,
            )
        return 1
    ((process, folder),) = found.items()
    before = rundir.reloads(folder)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGHUP)
    print(f"the server {process} reads its configuration", flush=True)
    accepted = False
    while (now := rundir.reloads(folder)) is not None and before is not None:
        # Only a reload that begins after the signal is sure to read the new configuration.
        if now.accepted > before.begun and not accepted:
            accepted = True
            print("the configuration is good: workers are replaced one by one, each drains for server.drain seconds", flush=True)
        if now.ended > before.begun:
            for problem in now.problems:
                print(f"push1st reload: {printable(problem)}", file=sys.stderr)
            if now.problems:
                return 1
            print(f"reloaded: {now.workers} worker{'s' * (now.workers != 1)}")
            return 0
        time.sleep(POLL_SECONDS)
    print(f"push1st reload: the server {process} has ended meanwhile", file=sys.stderr)
    return 1
