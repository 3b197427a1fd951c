"""Runs as MLflow keeps them: the store, the curves, the way back. Imports run and lodisc."""
