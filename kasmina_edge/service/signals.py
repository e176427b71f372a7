"""Ctrl-C and SIGTERM as an event, with a bound on how long a stop may take."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback

log = logging.getLogger(__name__)

STOP_WITHIN_S = 20.0
EXIT_STUCK = 1


def stop_on_signals(within_s: float | None = None) -> threading.Event:
    """An event that Ctrl-C and SIGTERM set.

    Args:
        within_s: The process ends so many seconds after the signal even when it is stuck, saying where: a power cut
            harms nothing here, so that an end harms nothing either. None: it takes the time that it takes.
    """
    stop = threading.Event()

    def end(*_: object) -> None:
        if not stop.is_set() and within_s is not None:
            timer = threading.Timer(within_s, end_now, args=(within_s,))
            timer.daemon = True
            timer.start()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return stop


def end_now(after_s: float) -> None:
    """Log where the main thread is, and end the process with 1."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    where = "".join(traceback.format_stack(frame, limit=4)) if frame is not None else ""
    log.error("not stopped within %g s, ending", after_s, extra={"where": where})
    logging.shutdown()
    os._exit(EXIT_STUCK)
