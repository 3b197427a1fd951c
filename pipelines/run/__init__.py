"""What every run has: its config, folder and checkpoints, the nodes it is on. Imports lodisc alone."""
