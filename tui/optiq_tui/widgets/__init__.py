"""Widgets that draw one part of the picture each. None of them knows the client's connection."""
