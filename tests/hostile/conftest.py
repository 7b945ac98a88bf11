"""The process that cases are forked from is no module of tests: it imports all that is large."""

collect_ignore = ["server.py"]
