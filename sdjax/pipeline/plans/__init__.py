"""A request, and how a certain model carries it out, decided before any weight is read."""
