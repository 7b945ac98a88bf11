"""synthkd: a small student from a trained teacher, without the teacher's training data."""

__version__ = "0.1.0"
