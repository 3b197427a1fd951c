"""Runs that train, and the driver that starts their workers. Imports evaluation, data, tracking, run and lodisc."""
