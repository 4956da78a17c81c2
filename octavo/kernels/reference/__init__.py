"""The executable specification of every op, written to be read."""
