"""Hooks for inference engines: one file per engine."""
