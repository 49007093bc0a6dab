"""ultralytics without a network, and without what its import puts into Pillow and torch for the whole process."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from PIL import Image

os.environ |= {"YOLO_CONFIG_DIR": tempfile.mkdtemp(), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
os.environ["YOLO_VERBOSE"] = "false"
kept = Image.open, torch.save
try:
    pytest.importorskip("ultralytics.engine.model", reason="needs ultralytics: pip install 'convattn[dev]'")
finally:
    Image.open, torch.save = kept
