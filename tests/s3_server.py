"""A bucket of an S3 look-alike (moto), in a process of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

PUT = """
import boto3, pathlib, sys
root, client = pathlib.Path(sys.argv[1]), boto3.client("s3")
client.create_bucket(Bucket="archive")
for path in root.rglob("*"):
    if path.is_file(): client.upload_file(path, "archive", f"gl/{path.relative_to(root)}")
"""


@contextlib.contextmanager
def bucket_of(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the address of a bucket with the files of `folder`, and the environment variables that open it."""
    line = [sys.executable, "-W", "ignore", "-c"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*line, SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True)
    assert process.stdin is not None and process.stdout is not None
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "ann",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    try:
        subprocess.run([*line, PUT, folder], check=True, env={**os.environ, **variables})
        yield "s3://archive/gl", variables
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
