"""Diffusion in JAX, from the command line: `python main.py --help`."""

from sdjax import cli

PROGRAM = "python main.py"


def main(arguments: list[str]) -> int:
    """`sdjax.cli.main`, whose help names this file."""
    return cli.main(arguments, PROGRAM)


if __name__ == "__main__":
    cli.run(PROGRAM)
