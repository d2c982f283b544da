"""From text to a dataset folder, and what is in one."""
