"""The one exception that sdjax raises for input it cannot use."""


class SdjaxError(ValueError):
    """One line that names what was expected, what came, and what to do."""
