"""What a hub has of a dataset, and its files on this machine."""
