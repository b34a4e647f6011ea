"""Models that leave home: three programs for another runtime, and a runner that needs no JAX.

`sdjax.export.runner` and what it imports need NumPy and the target's runtime only;
`sdjax.export.folder` writes what they read.
"""
