"""The command line. Commands: init serve reload status check app token publish subscribe history console watch version.

`arguments` defines the options of all commands, and names the function that runs each command.
The module of a command is imported only when this command runs. With several workers, the process of `serve` is the
supervisor, which must not load the libraries of other commands.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from push1st.cli.arguments import Arguments, parser
from push1st.errors import ClientError, ConfigError, Refused
from push1st.printable import printable, printable_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 for success, 1 if the command fails, 2 if the arguments are wrong."""
    commands = parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        commands.print_help(sys.stderr)
        return 2
    options = commands.parse_args(arguments)
    try:
        code = _command(options.run)(options)
        sys.stdout.flush()
    except (ClientError, Refused) as exc:
        print(printable(exc.text if isinstance(exc, Refused) else str(exc)), file=sys.stderr)
        return 1
    except ConfigError as exc:
        print(printable_lines(str(exc)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the program that reads this output has ended, as `head` does after ten lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _command(name: str) -> Callable[[Arguments], int]:
    """Returns the function that `name` refers to. `name` is `module:function`; the module is in this package."""
    module, _, function = name.partition(":")
    command: Callable[[Arguments], int] = getattr(importlib.import_module(f"push1st.cli.{module}"), function)
    return command
