"""The `pgcontext` command. Loaded by the command alone: the library never imports it."""

import sys
from importlib import import_module
from typing import Final

PACKAGES: Final = ("rich", "typer")
# `Exit.CONFIG` and `Exit.INTERRUPTED`: their module may need what is missing here, or not there.
CONFIG_EXIT_CODE: Final = 5
INTERRUPTED_EXIT_CODE: Final = 130


def main() -> None:
    """Run the command line; the entry point of the `pgcontext` script."""
    try:
        import_module("rich")  # it loads late, and should be missed here
        from pgcontext.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise
        print(
            "The pgcontext command needs typer and rich; run: pip install 'pgcontext[cli]'",
            file=sys.stderr,
        )
        sys.exit(CONFIG_EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)
    from pgcontext.cli.output import Output

    with Output().reported():
        app(prog_name="pgcontext")
