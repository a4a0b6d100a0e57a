"""Append-only, numbered SQL files; a file that has been released is never edited."""
