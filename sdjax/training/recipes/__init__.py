"""From a recipe and its pictures to a model."""
