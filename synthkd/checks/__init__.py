"""Is a teacher fit to teach, and is a student of any use? Neither needs data."""
