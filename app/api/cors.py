"""Cross-origin requests: closed, but for the pages that the owner names."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

SENT = ["Authorization", "X-API-Key", "Content-Type", "If-None-Match", "Idempotency-Key", "Last-Event-ID"]
SENT += ["Inference-Header-Content-Length"]
READ = ["ETag", "Location", "Retry-After", "WWW-Authenticate", "X-Engine", "X-Tensor-Shape", "X-Tensor-Dtype"]
READ += ["Inference-Header-Content-Length"]


def install(app: FastAPI, origins: str) -> None:
    """Let pages of these origins, separated by commas, read answers. Keys travel in headers: no cookies are allowed."""
    named = origins.replace(",", " ").lower().split()
    if named:
        methods = ["GET", "POST", "DELETE"]
        app.add_middleware(
            CORSMiddleware, allow_origins=named, allow_methods=methods, allow_headers=SENT, expose_headers=READ
        )
