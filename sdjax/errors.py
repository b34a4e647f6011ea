"""The one error type that a user is meant to read."""


class SdjaxError(ValueError):
    """One line that names what was expected, what came, and what to do about it."""
