"""Metrics on generated pictures, and captioned sheets of them."""
