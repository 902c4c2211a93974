"""Who may come in, and what they may do. No web framework: HTTP and gRPC ask the same door."""
