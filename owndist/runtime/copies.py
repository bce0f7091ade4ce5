"""Processes that a task forks by itself: copies of the worker, which must never act as one.

Such a copy has the worker's links, its queue and its memory. As a rule it ends by `os._exit`, or
runs another program. One that comes back from the task instead, by `return` or `sys.exit()`, would
take messages that are meant for the worker, and run its tasks a second time.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn


def end_copy(error: BaseException | None = None) -> NoReturn:
    """End this process as Python ends one whose main function has returned, or raised `error`."""
    status = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):
            if isinstance(error.code, (int, type(None))):
                status = (error.code or 0) & 0xFF
            else:
                print(error.code, file=sys.stderr)
        elif error is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
