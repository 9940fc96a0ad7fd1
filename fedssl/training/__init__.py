"""The local loop, augmentation, optimizers and schedules."""
