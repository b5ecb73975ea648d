"""What callers speak, over `server/service.py` alone: gRPC, REST, and the dialects of OpenAI and NeuroScope."""
