"""The greatest few of each row."""
