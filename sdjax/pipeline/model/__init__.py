"""A model with its adapters: in memory, on disk, and what it was trained on."""
