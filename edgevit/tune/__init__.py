"""Training a slim model: one loop for every objective, and distillation from the dense model."""
