"""Hyperparameter searches over `pipelines`. Empty in this release: searches arrive with a later one."""
