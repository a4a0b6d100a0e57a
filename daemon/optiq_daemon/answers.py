"""The one answer of a short-lived process, on stdout; everything that libraries print goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from optiq_core.errors import OptiqError


def give_answer(make: Callable[[], bytes]) -> int:
    """Write what ``make`` returns to stdout, or the reason why it cannot to stderr; returns the exit code."""
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        content = make()
    except OptiqError as error:
        print(error, file=sys.stderr)
        return 1
    with os.fdopen(answer, "wb") as out:
        out.write(content)
    return 0
