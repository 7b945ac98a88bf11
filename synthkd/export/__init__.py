"""A student as files that run in production."""
