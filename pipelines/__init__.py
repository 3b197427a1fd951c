"""What runs: recipes, image sources, pretraining, evaluation and tracking, on Ray and MLflow."""
