"""`overnight bench`: how fast a preset trains on this machine, and where its time and memory go."""
