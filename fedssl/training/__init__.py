"""The local loop, optimizers and schedules."""
