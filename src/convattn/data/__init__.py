"""Data sets of images, their transforms and the order in which training sees them."""
