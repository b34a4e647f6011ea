"""Sources of captioned pictures, and the loaders that bring them to training."""
