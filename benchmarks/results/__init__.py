"""What was measured, a file a benchmark; and what makes docs/results.md of some of them."""
