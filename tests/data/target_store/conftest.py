"""A local S3 server, one for all tests: s3fs keeps the connection that it made first."""

import os
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def s3_server():
    """moto's server on a free port, with the credentials it wants in the environment."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.fixture
def bucket(s3_server):
    """The address of a new bucket."""
    import s3fs

    assert os.environ["AWS_ENDPOINT_URL"]
    name = f"bucket-{uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
