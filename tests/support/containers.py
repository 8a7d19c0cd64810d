"""Containers of the server's image, without a daemon: kernel namespaces and a chroot, as `docker run` would set them.

As with `docker run --read-only --tmpfs /tmp --security-opt no-new-privileges -v BUNDLE:/bundle:ro`, process 1 has
namespaces of its own (process, mount, network, IPC, host name), the image's user, environment, entry point and command,
a root that nobody can write, and no new privileges. Unlike there, it has no control groups, no seccomp, and no bridge
to the host's network.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.servers import until

_ROOT = Path(__file__).resolve().parents[2]
_UNAVAILABLE = 69  # container.sh's exit status where no image can be built, whatever the Dockerfile says

_RUN = """
set -e
root=$1 bundle=$2 user=$3
shift 3
mount --bind "$root" "$root"
if [ -n "$bundle" ]; then
  mkdir -p "$root/bundle"
  mount --bind "$bundle" "$root/bundle"
  mount -o remount,bind,ro "$root/bundle"
fi
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" "$root" env -i "$@"
"""


@dataclass(frozen=True)
class Image:
    """An image in the storage that `serve/deploy/container.sh` fills."""

    name: str
    store: Path

    @classmethod
    def built(cls) -> "Image":
        """The image of this tree; skips the test where it cannot be built, fails where the Dockerfile is wrong."""
        store = _ROOT / "build/container"
        script = _ROOT / "serve/deploy/container.sh"
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run([script, store], env=environment, capture_output=True, text=True, check=False)
        if done.returncode == _UNAVAILABLE:
            pytest.skip(done.stderr.strip().splitlines()[-1])
        assert done.returncode == 0, done.stderr
        return cls("segpress", store)

    def buildah(self, *arguments: object) -> str:
        """Standard output of a buildah command in this storage."""
        storage = ("--root", self.store / "storage", "--runroot", self.store / "run")
        command = ["buildah", *map(str, (*storage, *arguments))]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def child(self, name: str, dockerfile: str, context: Path) -> "Image":
        """The image that `dockerfile`, which is based on this one, builds from the files in `context`."""
        file = context.parent / f"{name}.Dockerfile"
        file.write_text(dockerfile)
        self.buildah("build", "--isolation", "chroot", "--quiet", "--format", "docker", "-t", name, "-f", file, context)
        return Image(name, self.store)

    @property
    def config(self) -> dict[str, Any]:
        """What the Dockerfile says beside the files: User, Env, Entrypoint, Cmd, Healthcheck ..."""
        config: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", self.name))["Docker"]["config"]
        return config

    @contextlib.contextmanager
    def container(self, bundle: Path | None = None) -> Iterator["Container"]:
        """A running container, `bundle` mounted at /bundle; killed and removed when the block is left."""
        identity = self.buildah("from", self.name)
        try:
            root = Path(self.buildah("mount", identity))
            with Container(self.config, root, bundle) as container:
                yield container
        finally:
            self.buildah("rm", identity)


class Container:
    """One run of an image's entry point and command."""

    def __init__(self, config: dict[str, Any], root: Path, bundle: Path | None) -> None:
        self.log = ""
        self._environment: list[str] = config["Env"]
        self._user: str = config["User"]
        command = [*self._environment, *config["Entrypoint"], *config["Cmd"]]
        namespaces = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork")
        self._process = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", _RUN, "run", root, bundle or "", self._user, *command],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)  # unshare's own --kill-child is lost where the process changes its user
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def started(self) -> str:
        """Wait until the server says ready; its URL inside the container's network."""
        until(lambda: "ready on" in self.log or self._process.poll() is not None, seconds=120)
        found = re.search(r"ready on http://[^:]+:(\d+)", self.log)
        assert found, f"the container did not start:\n{self.log}"
        with self.network(), socket.socket() as any_socket:  # loopback is down in a new network
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
        return f"http://127.0.0.1:{found[1]}"

    @property
    def pid(self) -> int:
        """The host's PID of the container's process 1."""
        parent = self._process.pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text())

    def execute(self, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one more command inside, as `docker exec` does; by default as the image's user."""
        uid, _, gid = (user or self._user).partition(":")
        inside = ("--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd=/", "--setuid", uid, "--setgid", gid)
        enter = ["nsenter", "--target", str(self.pid), *inside, "env", "-i", *self._environment]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Connections that this thread opens in the block are made inside the container's network."""
        with Path("/proc/thread-self/ns/net").open() as here, Path(f"/proc/{self.pid}/ns/net").open() as there:
            _enter_network(there.fileno())
            try:
                yield
            finally:
                _enter_network(here.fileno())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, *, seconds: float = 60.0) -> int:
        """The exit status of process 1."""
        status = self._process.wait(seconds)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line


def _enter_network(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0x40000000) != 0:  # CLONE_NEWNET; os.setns needs Python 3.12
        raise OSError(ctypes.get_errno(), "setns")
