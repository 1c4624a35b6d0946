"""Tallystick: signed, logged, offline-verifiable records of model token batches.

Packages, imports going one way: ``core`` <- ``energy`` <- ``emit``; ``core`` <- ``store`` <-
``service``; ``core``, ``store`` <- ``export``; ``core`` <- ``audit``.
"""

__version__ = "0.1.0"
