"""One file per word of the command line, each with `run`: the only place where loop and disk
meet."""
