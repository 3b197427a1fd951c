"""Searches over the fields of a recipe: Ray Tune drives the trials, MLflow keeps them."""
