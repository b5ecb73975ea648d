"""MLX: models by mlx-lm, batching by its BatchGenerator."""
