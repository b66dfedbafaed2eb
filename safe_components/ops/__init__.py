"""Pure functions that every room may use: Gaussian KL terms, the E-step dual, the cost budget, aggregation."""
