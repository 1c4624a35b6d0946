"""Tests with engines too heavy for the everyday environment: run by ``make engines``."""
