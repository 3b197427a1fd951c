"""What users take away: embeddings, pictures, reports, exports. Imports evaluation, data, tracking, run and lodisc."""
