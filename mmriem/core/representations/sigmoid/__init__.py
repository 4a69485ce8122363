"""The representation of the paper: its formula, its fit, its payload."""
