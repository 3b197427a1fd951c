"""Images on their way from files to views, on Ray Data. Imports run and lodisc."""
