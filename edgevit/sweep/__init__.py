"""A sweep: one build for each of several budgets, put side by side in one report."""
