"""Matplotlib with its own defaults: no user's ``matplotlibrc`` is read, so none changes our figures.

Importing Matplotlib reads a file of that name in the working folder, then in the user's home, and fails if it is no
text. So Matplotlib is imported only here, and every figure is drawn inside :func:`as_delivered`.
"""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_VARIABLE = "MATPLOTLIBRC"
#: Names a window system for figures, which ours do not use; a wrong one ends the import.
_BACKEND = "MPLBACKEND"
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


@contextlib.contextmanager
def _no_settings_found() -> Iterator[None]:
    """Inside, an import of Matplotlib finds its own file: the working folder is ``/``, which only root can write, and
    the variable that comes before the user's home names that file. No backend is chosen by the environment."""
    spec = importlib.util.find_spec("matplotlib")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    before, given = os.open(".", os.O_PATH if sys.platform == "linux" else os.O_RDONLY), os.environ.get(_VARIABLE)
    # It warns of a home that cannot be written, and does without.
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    backend = os.environ.pop(_BACKEND, None)
    try:
        os.chdir("/")
        if places:
            os.environ[_VARIABLE] = str(Path(places[0]) / "mpl-data" / "matplotlibrc")
        yield
    finally:
        log.setLevel(level)
        os.fchdir(before)
        os.close(before)
        if backend is not None:
            os.environ[_BACKEND] = backend
        if given is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = given


if "matplotlib" in sys.modules:
    import matplotlib
else:
    with _no_settings_found():
        import matplotlib
        import matplotlib.font_manager  # looks for a place for its list of fonts

from matplotlib.artist import Artist  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch, Rectangle  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

__all__ = [
    "Artist",
    "Axes",
    "Figure",
    "Line2D",
    "MaxNLocator",
    "Patch",
    "Rectangle",
    "as_delivered",
    "png_of",
]

#: Settings that do not concern the look, and take effect when they are set.
_LEFT_ALONE = {"backend", "backend_fallback", "interactive", "toolbar", "timezone"}


def _delivered() -> dict[Any, Any]:
    settings: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if name not in _LEFT_ALONE
    }
    # A name may contain a dollar sign, but is no formula.
    return {**settings, "text.parse_math": False}


def as_delivered(draw: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """``draw``, with Matplotlib's own settings whatever the program around it has set, and no formulas in texts."""

    @wraps(draw)
    def drawn(*given: _Given.args, **named: _Given.kwargs) -> _Made:
        with matplotlib.rc_context(_delivered()):
            return draw(*given, **named)

    return drawn


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
