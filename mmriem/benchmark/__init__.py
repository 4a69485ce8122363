"""All methods side by side: networks, methods, and the tables and pictures of what they cost and keep."""
