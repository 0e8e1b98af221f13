"""Who is here and who gets what: Trio, but no transport."""
