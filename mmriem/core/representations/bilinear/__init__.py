"""States with one number for each rank: low-rank matrices, the SVD family."""
