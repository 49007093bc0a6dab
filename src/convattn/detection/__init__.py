"""Object detection and instance segmentation on any backbone that publishes ``feature_info``.

Labels are 1 to ``num_classes``, 0 is the background, in every detector.
"""

from convattn.detection.detectors import (
    RCNN,
    RetinaNet,
    cascade_mask_rcnn,
    cascade_rcnn,
    faster_rcnn,
    mask_rcnn,
    retinanet,
)
from convattn.detection.options import DetectorOptions, RCNNOptions, RetinaNetOptions

__all__ = [
    "RCNN",
    "DetectorOptions",
    "RCNNOptions",
    "RetinaNet",
    "RetinaNetOptions",
    "cascade_mask_rcnn",
    "cascade_rcnn",
    "faster_rcnn",
    "mask_rcnn",
    "retinanet",
]
