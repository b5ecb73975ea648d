"""Values on their way: protobuf, JSON, event streams and errors."""
