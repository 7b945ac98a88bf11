"""The frozen teacher: what it answers and what can be seen inside it."""
