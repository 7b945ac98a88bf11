"""`python -m synthkd` is the same as `synthkd`."""

from synthkd.cli import main

if __name__ == "__main__":
    main()
