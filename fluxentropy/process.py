"""What surrounds a command: signals, what libraries say, and stdout. Only the command line uses it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from fluxentropy.jsonvalues import plain

DEBUG = "FLUXENTROPY_DEBUG"
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def debugging() -> bool:
    """Whether the user asked for tracebacks and for what libraries say."""
    return bool(os.environ.get(DEBUG))


class Terminated(BaseException):
    """SIGTERM arrived. Like `KeyboardInterrupt`, nothing but `main` may catch it."""


def write_line(line: str) -> None:
    """Print `line` on stdout. That its reader, such as `head`, had enough is no failure."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_json(value: Any) -> str:
    """`value` as JSON on one line; NaN and infinity, which JSON has not, become null."""
    return json.dumps(plain(value), ensure_ascii=False, default=str)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries say away from the user. This package's own log and warnings show on stderr."""
    if debugging():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    silent = logging.NullHandler()  # without any handler, logging prints warnings by itself
    logging.getLogger().addHandler(silent)
    ours, spoken = logging.getLogger("fluxentropy"), logging.StreamHandler(sys.stderr)
    ours.addHandler(spoken)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"fluxentropy\b")
            warnings.showwarning = _show_warning
            yield
    finally:
        logging.getLogger().removeHandler(silent)
        ours.removeHandler(spoken)


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of returning it to the system and asking for it again.

    Every layer of a forward pass frees buffers of some megabytes and allocates as many: without this, the page faults
    cost a sixth of the scorer's speed in float32 (docs/LOG.md). Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_TRIM_THRESHOLD and so on of malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(top_pad, 2**26)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc accepts


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"warning: {message}\n")


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the program like Ctrl-C does, so that files are closed and removed."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python allows no signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
