"""What the commands and the library do, in directories of their own, without printing."""
