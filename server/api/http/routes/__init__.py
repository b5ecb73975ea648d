"""Our REST routes, a file a noun."""
