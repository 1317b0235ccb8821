"""The layers and the augmentation again in C, several times faster on a processor, and their compilation."""
