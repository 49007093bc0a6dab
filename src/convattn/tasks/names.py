"""The names of the tasks, apart from what they need."""

from typing import Literal, get_args

TaskName = Literal["classification", "detection", "instances", "segmentation"]
"""What is learned: a class for an image, boxes, boxes with masks, a class for every pixel."""

TASKS: tuple[TaskName, ...] = get_args(TaskName)
