"""What a request gave, as arrays with names, tables and files."""
