"""Training loops that are run beside each other, each in a process of its own: `python -m contenders NAME TASK`."""
