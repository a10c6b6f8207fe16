"""Training: one loop for every objective, the repair of a slim model, and searches for what may go."""
