"""Training: experiment descriptions, the step, its shardings, the loop, and checkpoints."""
