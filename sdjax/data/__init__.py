"""Sources of captioned pictures, and the loaders that bring them to training."""
from sdjax.data.canny import canny
from sdjax.data.clip_picture import clip_picture
from sdjax.data.config import DataConfig
from sdjax.data.loader import loader
from sdjax.data.pose import pose
from sdjax.data.source import open_source

__all__ = ["DataConfig", "canny", "clip_picture", "loader", "open_source", "pose"]
