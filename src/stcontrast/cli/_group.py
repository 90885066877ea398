"""How every command behaves: ``-v`` anywhere, errors of the user as one line, exit codes."""

from __future__ import annotations

import dis
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Group", "set_up_log"]

PACKAGE: Final = Path(__file__).parents[1]
UNEXPECTED: Final = "stcontrast did not expect this error. Please report it with this traceback."
VERBOSE: Final = ("-v", "--verbose")
INTERRUPTED: Final = 130


class Group(TyperGroup):
    """Commands whose ``-v`` may stand anywhere, and whose errors are told in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``-v`` to the front, from wherever it is."""
        end = args.index("--") if "--" in args else len(args)
        options = args[:end]
        verbose = [name for name in options if name in VERBOSE]
        rest = [name for name in options if name not in VERBOSE]
        return super().parse_args(ctx, [*verbose[:1], *rest, *args[end:]])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with errors_for_the_user():
            return super().invoke(ctx)


@contextmanager
def errors_for_the_user() -> Iterator[None]:
    """Print an error that the package raised on purpose as one line; any other keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if _of_usage(error):
            raise
        if not _raised_on_purpose(error):
            error.add_note(UNEXPECTED)
            raise
        # a KeyError shows its message in quotes
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        typer.echo(f"Error: {' '.join(text.split())}", err=True)
        raise typer.Exit(1) from error


def set_up_log(*, verbose: bool) -> None:
    """Warnings of the package on the error stream, and with `verbose` what is being done."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("stcontrast").setLevel(logging.INFO if verbose else logging.WARNING)


def _of_usage(error: Exception) -> bool:
    """Whether an argument was wrong, of which Typer tells itself."""
    # BadParameter is a UsageError, which is a ClickException
    return isinstance(error, typer.BadParameter.__mro__[2])


def _raised_on_purpose(error: Exception) -> bool:
    """Whether a `raise` statement in the package's own code made the error.

    A missing key of a dict, or an error inside another package, is not raised by such a statement. An AttributeError is
    how a module says that it lacks a name, which is no mistake of the user.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, AttributeError):
        return False
    code = trace.tb_frame.f_code
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)
