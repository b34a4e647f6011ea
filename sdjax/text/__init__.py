"""Prompts to token ids and embeddings."""
