"""The gRPC server and its Python client. Knows the interface of the engine, no arrays."""
