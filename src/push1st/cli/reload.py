"""`push1st reload`: makes a running server read its configuration again, and waits until the server has applied it."""

import os
import sys

from push1st.cli.arguments import Arguments
from push1st.printable import printable
from push1st.process import controlsocket, rundir


def run(options: Arguments) -> int:
    """Sends the command to the server and prints its answers; returns 1 if a worker does not have the new configuration."""
    found = rundir.running(options.config)
    if len(found) != 1:
        which = f" with {options.config}" if options.config else ""
        whose = "this user" if os.getuid() else "any user"
        if found:
            servers = printable(rundir.described(found))
            print(
                f"push1st reload: several servers run{which}: {servers}. Select one: -c FILE, or kill -HUP PID", file=sys.stderr
            )
        else:
            print(f"push1st reload: nothing was reloaded: no server of {whose} runs{which}", file=sys.stderr)
        return 1
    ((process, folder),) = found.items()
    print(f"the server with process id {process} reads its configuration", flush=True)
    result = controlsocket.send(folder, controlsocket.Reload(options.workers), lambda text: print(printable(text), flush=True))
    if result is None:
        print(f"push1st reload: the server {process} has ended meanwhile", file=sys.stderr)
        return 1
    for problem in result.problems:
        print(f"push1st reload: {printable(problem)}", file=sys.stderr)
    if result.problems:
        return 1
    print("\n".join(map(printable, result.lines)))
    return 0
