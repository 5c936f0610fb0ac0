"""What a federation costs: status of many owners, submit and fetch beside plain copies, verify beside sha256.

python -m benchmarks.federating                     # everything, in a folder for temporary files
python -m benchmarks.federating --mb 400 --owners 100 --versions 1000
python -m benchmarks.federating --memory 1000 2000  # peak memory of submit and fetch
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import torch

from federation.coordinator.anchors import publish_anchor
from federation.coordinator.assemble import assemble
from federation.coordinator.choose import choose
from federation.coordinator.found import add_owner, init
from federation.coordinator.refresh import refresh
from federation.history.commit import Coordinator, Draft
from federation.history.events import event
from federation.owner.submit import submit
from federation.policy.policy import Policy
from federation.reader.fetch import fetch_expert
from federation.reader.status import read_federation, status_of
from federation.reader.verify import verify_model
from federation.roles.home import Home, make_home
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import write_expert
from merge.formats.signing import make_key
from tests.merge.tiny import expert_header, expert_values, write_anchor


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_about: object) -> None:
        pass


def timed(call: Callable[[], object], times: int = 3) -> float:
    """The median of several runs, in seconds."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def founded(folder: Path, anchor: Path) -> Coordinator:
    home = init(str(folder / "store"), folder / "keys", folder / "home", Policy(), "benchmark", [], 1)
    coordinator = Coordinator(home, folder / "keys")
    publish_anchor(coordinator, anchor)
    return coordinator


def many_owners(folder: Path, owners: int, versions: int) -> None:
    """`status` where each of many owners has submitted, and the history is long."""
    folder.mkdir()
    write_anchor(folder / "anchor", 0, {})
    anchor = open_anchor(folder / "anchor")
    coordinator = founded(folder, folder / "anchor")
    os_fsync, os.fsync = os.fsync, lambda _descriptor: None  # how it was made is not what is measured
    for n in range(owners):
        domain = f"domain{n}"
        make_key(folder / f"{domain}.pem")
        add_owner(coordinator, domain, folder / f"{domain}.pub")
        write_expert(folder / f"{domain}.pt", expert_header(domain, anchor), expert_values(domain, anchor, n))
        submit(coordinator.home, folder / f"{domain}.pt", [folder / f"{domain}.pem"])
    refresh(coordinator)
    done = len(read_federation(coordinator.home).events)

    def more(draft: Draft) -> None:
        draft.events.append(event("submitted", domain="domain0", role="x", serial=1, digest="0" * 64, anchor="0" * 64))

    for _ in range(max(0, versions - done)):
        coordinator.commit(more)
    os.fsync = os_fsync
    words = [sys.executable, "-m", "federation.commands.flexo_federation", "status", "--home", str(folder / "home")]
    inside = timed(lambda: status_of(read_federation(coordinator.home)))
    whole = timed(lambda: subprocess.run(words, check=True, capture_output=True))
    print(f"| status, {owners} owners, {versions} versions | {inside:.2f} s | {whole:.2f} s with the start of Python |")


def prepared(folder: Path, mb: int) -> tuple[Coordinator, Path, Path]:
    """A federation whose owner of math has an expert of about `mb` MB and its key, and has not submitted it."""
    folder.mkdir()
    width = 512
    layers = max(1, round(mb * 1e6 / (3 * width * 4 * width * 4)))
    config = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    write_anchor(folder / "anchor", 0, config)
    anchor = open_anchor(folder / "anchor")
    expert, key = folder / "math.pt", folder / "math.pem"
    write_expert(expert, expert_header("math", anchor), expert_values("math", anchor))
    make_key(key)
    coordinator = founded(folder, folder / "anchor")
    add_owner(coordinator, "math", key.with_suffix(".pub"))
    print(f"| expert | {expert.stat().st_size / 1e6:.0f} MB, {layers} layers |")
    return coordinator, expert, key


def peak_memory(folder: Path, mb: int) -> None:
    """The most memory of a process that submits a large expert, and of one that fetches it."""
    coordinator, expert, key = prepared(folder, mb)
    begin = (
        "from pathlib import Path\nfrom federation.roles.home import open_home\n"
        "from federation.owner.submit import submit\nfrom federation.reader.fetch import fetch_expert\n"
        "from federation.reader.status import read_federation\n"
        f"home = open_home(Path({str(coordinator.home.folder)!r}))\n"
    )
    fetched = "(one,) = read_federation(home).owners[0].submissions.values()\nfetch_expert(home, one)"
    for what, code in (
        ("nothing", ""),
        ("submit", f"submit(home, Path({str(expert)!r}), [Path({str(key)!r})])"),
        ("fetch", fetched),
    ):
        shown = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        done = subprocess.run([sys.executable, "-c", begin + code + shown], check=True, capture_output=True, text=True)
        print(f"| peak memory, {what} | {int(done.stdout.split()[1]) / 1e3:.0f} MB |", flush=True)
        refresh(coordinator)


def large(folder: Path, mb: int, sftp: str) -> None:
    """One large expert: submit and fetch by each route, and verify."""
    coordinator, expert, key = prepared(folder, mb)
    size = expert.stat().st_size
    root = (folder / "home" / "root.json").read_bytes()

    def sent(home: Home) -> None:
        shutil.rmtree(folder / "store" / "targets" / "experts", ignore_errors=True)
        submit(home, expert, [key])

    def copied() -> None:
        shutil.copyfile(expert, folder / "copy")
        with (folder / "copy").open("rb") as file:
            os.fsync(file.fileno())

    routes = {"folder": str(folder / "store")} | ({"sftp": f"{sftp}{folder}/store"} if sftp else {})
    for name, url in routes.items():
        home = make_home(folder / f"owner-{name}", url, url, root)
        plain = copied if name == "folder" else partial(put, sftp, expert, folder / "copy")
        compare(f"submit, {name}", size, partial(sent, home), plain)
    refresh(coordinator)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "store")))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = f"http://127.0.0.1:{server.server_address[1]}"
    (one,) = read_federation(coordinator.home).owners[0].submissions.values()
    for name, url in (routes | {"http": web}).items():
        home = make_home(folder / f"reader-{name}", url, url, root)

        def fetched(home: Home = home) -> None:
            shutil.rmtree(home.folder / "experts", ignore_errors=True)
            fetch_expert(home, one)

        if name == "http":
            command = ["curl", "-sS", "-o", str(folder / "copy"), f"{web}/{one.stored_as}"]
            plain = partial(subprocess.run, command, check=True)
        else:
            plain = copied if name == "folder" else partial(get, sftp, folder / "copy", expert)
        compare(f"fetch, {name}", size, fetched, plain)
    server.shutdown()
    chosen, _ = choose(coordinator)
    assemble(coordinator, chosen, folder / "model", lambda _a: None, lambda _f, _a: None)
    weights = folder / "model" / "model.safetensors"

    def hashed() -> None:
        digest = hashlib.sha256()
        with weights.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)

    found = read_federation(coordinator.home)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compare("verify, beside sha256", weights.stat().st_size, lambda: verify_model(found, folder / "model"), hashed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"| peak memory of verify, beyond what was there | {grown / 1e3:.0f} MB |")


def put(sftp: str, source: Path, target: Path) -> None:
    batch(sftp, f"put {source} {target}")


def get(sftp: str, source: Path, target: Path) -> None:
    batch(sftp, f"get {target} {source}")


def batch(sftp: str, line: str) -> None:
    """What OpenSSH's own client takes for it."""
    host, port = sftp.removeprefix("sftp://").rsplit(":", 1)
    ssh = Path.home() / ".ssh"  # OpenSSH looks in the password file for this folder, asyncssh in HOME
    options = ["-o", f"IdentityFile={ssh}/id_ed25519", "-o", f"UserKnownHostsFile={ssh}/known_hosts"]
    words = ["sftp", "-q", *options, "-b", "-", "-P", port, host]
    subprocess.run(words, input=line.encode(), check=True, stdout=subprocess.DEVNULL)


def compare(what: str, size: int, ours: Callable[[], object], plain: Callable[[], object], pairs: int = 5) -> None:
    """Runs both in turn and prints the median speeds and the median ratio, with the load of the machine."""
    seconds = [(timed(plain, 1), timed(ours, 1)) for _ in range(pairs)]
    ratio = median(before / after for before, after in seconds)
    speeds = [size / median(one) / 1e6 for one in zip(*seconds, strict=True)]
    load = f"{os.getloadavg()[0]:.1f}"
    print(f"| {what} | {speeds[1]:.0f} MB/s | {speeds[0]:.0f} MB/s | {ratio:.2f} | {load} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=400, help="size of the large expert")
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="sizes of experts in MB: only peak memory")
    parser.add_argument("--owners", type=int, default=100)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--sftp", default="", help="sftp://user@host:port of a server on this machine")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        for mb in given.memory:
            peak_memory(Path(name) / str(mb), mb)
        if given.memory:
            return
        large(Path(name) / "large", given.mb, given.sftp)
        many_owners(Path(name) / "many", given.owners, given.versions)


if __name__ == "__main__":
    main()
