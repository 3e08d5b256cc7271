"""The wire format: `openlora.proto`, and the stubs generated from it."""
