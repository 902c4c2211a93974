"""Open Inference Protocol v2 over gRPC; needs the extra `grpc`, so nothing imports it unless `grpc_port` is set."""
