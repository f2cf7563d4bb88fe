"""Links over gRPC: one bidirectional stream per connecting and accepting process."""

from actorhub.transport.grpc.options import TlsFiles
from actorhub.transport.grpc.transport import AddService, GrpcTransport

__all__ = ["AddService", "GrpcTransport", "TlsFiles"]
