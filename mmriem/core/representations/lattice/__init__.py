"""Integer states: what they are, how they are found, and the trellis that they may follow."""
