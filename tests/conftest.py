"""What holds for all tests."""

import signal

# A shell that starts the tests in the background has SIGINT ignored, and so would all processes that they start:
# tests that send Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
