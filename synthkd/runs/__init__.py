"""Run directories: the only writers of them."""
