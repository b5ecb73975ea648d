"""What outlives the server: one SQLite database and its files, in the gateway and in workers."""
