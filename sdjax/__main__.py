"""`python -m sdjax`."""

from sdjax.cli import run

run("python -m sdjax")
