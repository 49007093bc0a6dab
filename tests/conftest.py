"""What holds for all tests."""

import os
import signal
import tempfile

# A shell that starts the tests in the background has SIGINT ignored, and so would all processes that they start:
# tests that send Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asks a hub, nor finds what this machine's cache has; those on the hub say what theirs answers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.path.join(tempfile.gettempdir(), "convattn-tests-have-no-hub")
