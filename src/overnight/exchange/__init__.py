"""Weights from elsewhere and to elsewhere: a name table and one transform for each format."""
