"""TLS by certificate files: served, trusted by the client's verbs, refused when the files do not fit."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from app.client import Client, ClientError
from app.domain.errors import StartRefused
from app.settings import Settings
from app.tls import certificate_files
from tests.keys import add_key
from tests.service import ROOT, Service

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two self-signed certificates, a and b, and a's key encrypted."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("a", "b"):
        subject = "-days 2 -subj /CN=jetson -addext subjectAltName=IP:127.0.0.1"
        request = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem {subject}"
        subprocess.run(request.split(), cwd=folder, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "pkey", "-in", "a.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "text.pem").write_text("hello")
    return folder


def settings(certificates: Path, cert: str, key: str) -> Settings:
    names = {"tls_cert": cert, "tls_key": key}
    return Settings(**{field: str(certificates / name) if name else "" for field, name in names.items()})


@pytest.mark.parametrize(
    ("cert", "key", "reason"),
    [
        ("a.pem", "b.key", "not that of the certificate"),
        ("a.pem", "locked.key", "encrypted"),
        ("text.pem", "a.key", "make a server's certificate"),
        ("a.pem", "text.pem", "make a server's certificate"),
        ("missing.pem", "a.key", "cannot be read"),
        ("a.pem", "missing.key", "cannot be read"),
        ("", "a.key", "without JETFORGE_TLS_CERT"),
        ("a.pem", "", "make a server's certificate"),
    ],
)
def test_files_that_make_no_certificate_are_refused_with_the_reason(
    certificates: Path, cert: str, key: str, reason: str
) -> None:
    with pytest.raises(StartRefused, match=reason) as refused:
        certificate_files(settings(certificates, cert, key))

    assert refused.value.hint


def test_without_files_there_is_no_tls() -> None:
    assert certificate_files(Settings()) == {}


def test_the_service_speaks_tls_and_the_client_trusts_the_certificate_it_is_given(
    certificates: Path, tmp_path: Path
) -> None:
    service = Service(
        tmp_path / "data", "--no-worker", tls_cert=str(certificates / "a.pem"), tls_key=str(certificates / "a.key")
    )
    service.trusted = ssl.create_default_context(cafile=str(certificates / "a.pem"))
    key = add_key(service.data_dir, "laptop", "read")
    service.start()
    try:
        assert service.url.startswith("https://")
        command = [sys.executable, "-m", "app", "jobs", "--json", "--url", service.url]
        done = subprocess.run(
            [*command, "--cacert", certificates / "a.pem", "--key", key], cwd=ROOT, capture_output=True, timeout=60
        )
        assert json.loads(done.stdout) == {"jobs": [], "next": None}, done

        for wrong in (None, certificates / "b.pem"):
            with pytest.raises(ClientError) as refused, Client(service.url, key=key, cacert=wrong) as client:
                client.jobs()
            assert refused.value.code == "certificate_untrusted" and "--cacert" in refused.value.hint

        with pytest.raises(httpx.TransportError):
            httpx.get(service.url.replace("https", "http"), trust_env=False)
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("is_one_file", [False, True], ids=["two files", "one file"])
def test_grpc_speaks_tls_as_the_web_server_does(certificates: Path, tmp_path: Path, *, is_one_file: bool) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((certificates / "a.key").read_bytes() + (certificates / "a.pem").read_bytes())
    named = {"tls_cert": str(certificates / "a.pem"), "tls_key": str(certificates / "a.key")}
    service = Service(
        tmp_path / "data", "--no-worker", grpc_port="0", **({"tls_cert": str(both)} if is_one_file else named)
    )
    service.trusted = ssl.create_default_context(cafile=str(certificates / "a.pem"))
    service.start()
    try:

        def is_live(**trust: Any) -> bool:
            with triton.InferenceServerClient(service.grpc, **trust) as client:
                return bool(client.is_server_live(client_timeout=30))

        assert is_live(ssl=True, root_certificates=str(certificates / "a.pem"))
        for trust in ({"ssl": True, "root_certificates": str(certificates / "b.pem")}, {}):
            with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                is_live(**trust)
    finally:
        assert service.stop() == 0


def test_a_client_is_told_that_its_certificates_or_key_cannot_be_used(certificates: Path) -> None:
    for code, options in (
        ("file_unreadable", {"cacert": certificates / "missing.pem"}),
        ("file_unreadable", {"cacert": certificates / "text.pem"}),
        ("invalid_key", {"key": "with a line\nend"}),
        ("invalid_key", {"key": "schlüssel"}),
    ):
        with pytest.raises(ClientError) as refused:
            Client("https://127.0.0.1:1", **options)  # type: ignore[arg-type]

        assert refused.value.code == code
