"""Settings and names of the commands' tests on detectors and segmenters."""

SMALL = ["model_args.channels=[8, 8, 16, 16]", "epochs=1", "batch_size=4", "data.workers=0", "trainer.accelerator=cpu"]
BOXES = [
    "network.args={min_size: null, max_size: 128, anchor_scale: 4, channels: 16, fc_channels: 16, proposals: [40, 20],"
    " regions_per_image: 16, score_threshold: 0.0}"
]
PIXELS = ["network.args={pyramid_channels: 16, channels: 16}", "segmentation_augment.crop=[64, 64]", "ema.decay=null"]
TASKS = ("detection", "instances", "segmentation")

PICTURES = {"new_a_photo.png", "new_b_photo.png", "odd one.png"}
