"""CIFAR-10 to the byte, and from there to batches: augmentation, mixing, and every random number of them."""
