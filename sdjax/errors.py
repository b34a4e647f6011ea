"""The one exception that sdjax raises for input it cannot use, and the commonest check."""


class SdjaxError(ValueError):
    """One line that names what was expected, what came, and what to do."""


def check_at_least(least, config, *names):
    """SdjaxError that names the first of these fields of `config` whose value is below `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise SdjaxError(f"{name} must be at least {least}, got {getattr(config, name)}")
