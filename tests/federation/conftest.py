"""A federation of made-up experts in a folder, and a real SFTP server on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.coordinator.anchors import publish_anchor
from federation.coordinator.found import add_owner, init
from federation.coordinator.refresh import refresh
from federation.history.commit import Coordinator
from federation.owner.submit import Submitted, submit
from federation.policy.policy import Policy
from federation.reader.status import Federation, read_federation
from federation.roles import trust
from federation.roles.home import Home, make_home
from merge.formats.signing import make_key
from tests.conftest import MakeExpert

SSHD = Path("/usr/sbin/sshd")


class World:
    """A store, a coordinator, and as many owners as a test asks for; each has a folder of its own."""

    def __init__(self, folder: Path, anchor: Path, make_expert: MakeExpert, store: str = "") -> None:
        self.folder, self.anchor, self._make = folder, anchor, make_expert
        self.store = folder / "store"
        self.url = store or str(self.store)
        self.keys = folder / "keys"

    def found(self, policy: Policy | None = None) -> Coordinator:
        """The coordinator of a federation that has just an anchor."""
        home = init(self.url, self.keys, self.folder / "coordinator", policy or Policy(), "test", [], 1)
        publish_anchor(self.coordinator, self.anchor)
        return Coordinator(home, self.keys)

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator(Home(self.folder / "coordinator", self.url, self.url), self.keys)

    @property
    def root(self) -> bytes:
        return (self.folder / "coordinator" / "root.json").read_bytes()

    def home(self, name: str, url: str = "") -> Home:
        """A member's own folder, which has joined."""
        return make_home(self.folder / name, url or self.url, self.url, self.root)

    def key(self, name: str) -> Path:
        path = self.folder / f"{name}.pem"
        if not path.exists():
            make_key(path)
        return path

    def owner(self, domain: str) -> Home:
        """An owner who is in and has joined; their key is that of the domain's name."""
        add_owner(self.coordinator, domain, self.key(domain).with_suffix(".pub"))
        return self.home(domain)

    def expert(self, domain: str, seed: int = 0, **more: object) -> Path:
        path = self.folder / f"{domain}-{seed}.pt"
        if not path.exists():
            self._make(domain, seed=seed, anchor=self.anchor, path=path, **more)
        return path

    def submit(self, domain: str, seed: int = 0, refreshed: bool = True, **more: object) -> Submitted:
        done = submit(self.home(domain), self.expert(domain, seed), [self.key(domain)], **more)  # type: ignore[arg-type]
        if refreshed:
            refresh(self.coordinator)
        return done

    def seen(self, name: str = "outsider") -> Federation:
        return read_federation(self.home(name))

    def metadata(self, pattern: str) -> list[Path]:
        """Files of the store's metadata, by version."""
        found = self.store.joinpath("metadata").glob(pattern)
        return sorted(found, key=lambda path: int(path.name.split(".")[0]))


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path, tiny_anchor: Path, make_expert: MakeExpert) -> MakeWorld:
    """`make_world("name", store=URL)`: nothing is founded yet."""

    def make(name: str = "world", store: str = "", anchor: Path = tiny_anchor) -> World:
        folder = tmp_path / name
        folder.mkdir()
        return World(folder, anchor, make_expert, store)

    return make


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, and waiting for the disk takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(trust, "PATIENCE", ())


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_anchor: Path, make_expert: MakeExpert) -> World:
    made = World(tmp_path_factory.mktemp("template") / "world", tiny_anchor, make_expert)
    made.folder.mkdir()
    made.found()
    for domain in ("code", "math"):
        made.owner(domain)
        made.submit(domain, refreshed=False)
    refresh(made.coordinator)
    return made


@pytest.fixture
def world(template: World, tmp_path: Path, make_expert: MakeExpert) -> World:
    """A federation with an anchor, and an owner of math and one of code, both of whom have submitted."""
    shutil.copytree(template.folder, tmp_path / "world")
    return World(tmp_path / "world", template.anchor, make_expert)


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`sftp://root@127.0.0.1:PORT`, a real OpenSSH server with its host key in known_hosts and a key that may enter."""
    if not SSHD.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {SSHD} here: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for name in (folder / "host", home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(name)], check=True)
    shutil.copy(home / ".ssh" / "id_ed25519.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key = (folder / "host.pub").read_text().split()[:2]
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    config = (
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nPasswordAuthentication no\nStrictModes no\nMaxStartups 100\nMaxSessions 100\n"
        "Subsystem sftp internal-sftp\nPermitRootLogin yes\n"
    )
    (folder / "config").write_text(config)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(home))
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    import getpass

    yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}"
    patch.undo()
    server.terminate()
    server.wait(10)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """`s3://fed`, a bucket of moto's server on loopback, which answers as S3 does."""
    s3fs = pytest.importorskip("s3fs", reason="no s3fs here: pip install s3fs")
    if not (command := shutil.which("moto_server")):
        pytest.skip("no moto_server here: pip install 'moto[s3,server]', in an environment of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        s3fs.S3FileSystem().mkdir("fed")
        yield "s3://fed"
    server.terminate()
    server.wait(10)
