"""What an encoder's features are good for. Imports data, tracking, run and lodisc."""
