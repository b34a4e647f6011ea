"""Networks as Flax Linen modules: they know nothing of files, schedules or training."""
