"""Prompts to token ids and embeddings."""

from .tokenizer import Tokenizer
from .vocabulary import train_tokenizer

__all__ = ["Tokenizer", "train_tokenizer"]
