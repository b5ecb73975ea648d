"""What a program that works by itself is given of a box: an MCP server over a client."""
