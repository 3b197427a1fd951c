"""How a command reaches Ray, and the `lodisc` command line."""
