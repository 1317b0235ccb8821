"""CIFAR-10 to the byte, other data sets, and from there to batches: augmentation, mixing, every random number."""
