"""The student: how it learns, which network it is, how fast it runs."""
