"""Prepares the device before any test module imports MLX: BLAS cannot be put in front of it later."""

import signal

from optiq_core.base import setup_device

setup_device()

# A shell that runs the suite in the background ignores Ctrl-C for it; processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
