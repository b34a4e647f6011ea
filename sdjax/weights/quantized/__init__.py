"""Weights of few bits: made of wide ones, and read from and written to files."""
