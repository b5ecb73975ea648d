"""gRPC, served by the gateway and by workers alike."""
