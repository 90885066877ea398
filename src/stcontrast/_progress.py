"""Progress: a bar for every stage of a call on a terminal or in a notebook, and a line a stage in the log."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from stcontrast._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["Stage", "duration", "of_part", "parts_of", "shows_progress", "stage", "steps"]

logger = logging.getLogger(__name__)

# a stage that ends before that is not drawn, and a bar is drawn anew so often, so that its clock runs
DELAY_S: Final = 0.4
TICK_S: Final = 0.5
COUNTED: Final = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"
COUNTED_SLOWLY: Final = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}{postfix}]"
UNCOUNTED: Final = "{desc} [{elapsed}{postfix}]"

_PARTS: ContextVar[tuple[str, ...]] = ContextVar("_PARTS", default=())
# stages that are open in this process, the outermost first; a worker thread of joblib adds to those of the caller
_OPEN: list[Stage] = []
_LOCK = threading.RLock()
_TICKING = threading.Event()


class Stage:
    """A part of the work with a name of its own; made by :func:`stage`.

    Parameters
    ----------
    name
        What is being done.
    total, initial, unit
        Number of steps, how many are done already, and what a step is; without `total` only the time is shown.
    remaining
        Seconds that are left, or `None` where nobody can tell; by default from the steps so far.
    whole
        Whether it is a whole call, whose stages have bars of their own.
    """

    def __init__(
        self,
        name: str,
        *,
        total: int | None = None,
        initial: int = 0,
        unit: str = "",
        remaining: Callable[[], float | None] | None = None,
        whole: bool = False,
    ) -> None:
        self.name = name
        self.total = total
        self.n = initial
        self.unit = unit
        self.remaining = remaining
        self.whole = whole
        self.started = time.monotonic()
        self.detail = ""
        self._logged: set[str] = set()
        self._bar: Any = None

    def update(self, n: int = 1) -> None:
        """Count steps as done."""
        self.n += n
        if self._bar is not None:
            self._tell()
            self._bar.update(n)

    def rename(self, name: str) -> None:
        """Go on under another name: the next slide of several that are counted together."""
        self.name = named(name)
        self.log()
        if self._bar is not None:
            self._bar.set_description_str(self.name, refresh=False)

    def say(self, detail: str) -> None:
        """Show something behind the count, until something else is said."""
        self.detail = detail

    def expect(self, total: int, *, initial: int = 0, unit: str = "") -> None:
        """Set the number of steps, where it is only known after the stage has begun."""
        self.total, self.n, self.unit = total, initial, unit or self.unit
        with _LOCK:
            if self._bar is not None:
                self.hide()
                self.show()

    def log(self, level: int = logging.INFO) -> None:
        """Write the name into the log, once."""
        if self.name not in self._logged:
            self._logged.add(self.name)
            logger.log(level, "%s.", self.name[:1].upper() + self.name[1:])

    def __getstate__(self) -> dict[str, Any]:
        # another process has no bar
        return {**self.__dict__, "_bar": None, "remaining": None}

    def show(self, *, delay: float | None = None) -> None:
        """Make the bar; it is drawn after a delay in seconds."""
        shape = UNCOUNTED if self.total is None else COUNTED if self.remaining is None else COUNTED_SLOWLY
        self._bar = _bar(
            desc=self.name, total=self.total, initial=self.n, unit=self.unit, bar_format=shape,
            delay=DELAY_S if delay is None else delay, leave=False,
        )  # fmt: skip
        if self.started < time.monotonic() - TICK_S:
            # a call that goes on after one of its stages
            self._bar.start_t -= time.monotonic() - self.started

    def hide(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def draw(self) -> None:
        """Draw the bar anew, so that its clock runs."""
        if self._bar is None or time.time() < self._bar.start_t + self._bar.delay:
            return
        self._tell()
        self._bar.refresh()

    def _tell(self) -> None:
        """Put what is said behind the count."""
        said = [] if self.remaining is None else [_left(self.remaining())]
        self._bar.set_postfix_str(", ".join(filter(None, [*said, self.detail])), refresh=False)


@contextmanager
def stage(
    name: str,
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "",
    remaining: Callable[[], float | None] | None = None,
    whole: bool = False,
) -> Iterator[Stage]:
    """Show and log what is being done inside a ``with`` block, or inside a function that this decorates.

    On a terminal and in a notebook a bar is shown, and removed at the end; anywhere else, or where
    ``stcontrast.settings.progress`` is off, there is only a line in the log, at INFO. Inside a stage of a whole call
    (`whole`) the stages have bars of their own; a stage inside another stage is shown behind the name of that one.

    Parameters
    ----------
    name, total, initial, unit, remaining, whole
        As for :class:`Stage`.

    Yields
    ------
    The stage, to count its steps.
    """
    here = Stage(named(name), total=total, initial=initial, unit=unit, remaining=remaining, whole=whole)
    outer = _OPEN[-1] if _OPEN else None
    if outer is not None and whole:
        # a public function that calls another one is one call
        yield here
        return
    if outer is not None and not outer.whole:
        before = outer.detail
        here.log(logging.DEBUG)
        outer.say(", ".join(filter(None, [before, here.name])))
        try:
            yield here
        finally:
            outer.say(before)
        return
    here.log()
    with _LOCK:
        shown = shows_progress()
        if outer is not None and shown:
            outer.hide()
        _OPEN.append(here)
        if shown:
            here.show(delay=0 if outer is None else None)
            _tick()
    try:
        yield here
    finally:
        with _LOCK:
            here.hide()
            _OPEN.remove(here)
            if outer is not None and shown:
                outer.show()


def steps[T](items: Collection[T], name: str, *, unit: str) -> Iterator[T]:
    """Go through items as a stage, a step an item."""
    with stage(name, total=len(items), unit=unit) as here:
        for item in items:
            yield item
            here.update()


@contextmanager
def of_part(name: str) -> Iterator[None]:
    """Let the names of stages inside a ``with`` block end in that of a part, such as "fold 2 of 4"."""
    token = _PARTS.set((*_PARTS.get(), name))
    try:
        yield
    finally:
        _PARTS.reset(token)


def parts_of[T](items: Collection[T], name: str, *, done: int = 0) -> Iterator[T]:
    """Go through items, each a part of the work: "fold 1 of 4", "fold 2 of 4"; the first of them may be done already."""
    for i, item in islice(enumerate(items), done, None):
        with of_part(f"{name} {i + 1} of {len(items)}"):
            yield item


def named(name: str) -> str:
    """The name with that of the part of the work that it belongs to."""
    return ", ".join((name, *_PARTS.get()))


def shows_progress() -> bool:
    """Whether there are bars: on a terminal and in a notebook, unless the setting is off."""
    stderr = sys.stderr
    return settings.progress and (_in_notebook() or (stderr is not None and stderr.isatty()))


def duration(seconds: float) -> str:
    """A duration to read: "40 s", "7 min", "2 h 10 min".

    Examples
    --------
    >>> duration(40), duration(7 * 60), duration(7800)
    ('40 s', '7 min', '2 h 10 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {duration(seconds)} left"


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _bar(**shape: Any) -> Any:
    # without ipywidgets `tqdm.auto` warns of what it lacks; text does as well
    if _in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(**shape)
    from tqdm import tqdm

    # (tqdm draws nothing where a terminal says that it has no lines)
    return tqdm(**shape, file=sys.stderr, ncols=_width(), nrows=20)


def _width() -> int:
    """Columns of the terminal; some, such as that of a container, say they have none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _tick() -> None:
    """Start to draw the bars anew every moment, unless that runs already."""
    if not _TICKING.is_set():
        _TICKING.set()
        threading.Thread(target=_draw_while_open, name="stcontrast-progress", daemon=True).start()


def _draw_while_open() -> None:
    while True:
        time.sleep(TICK_S)
        with _LOCK:
            if not _OPEN:
                _TICKING.clear()
                return
            _OPEN[-1].draw()
