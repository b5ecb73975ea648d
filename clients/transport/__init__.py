"""What carries a client's calls: gRPC, REST, or a service in this process; waited for or awaited."""
