"""Sources of captioned pictures, and the loaders that bring them to training."""
from sdjax.data.config import DataConfig
from sdjax.data.loader import loader
from sdjax.data.source import open_source

__all__ = ["DataConfig", "loader", "open_source"]
