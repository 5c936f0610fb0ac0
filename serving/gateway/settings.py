"""The settings of a server, one YAML file. Paths in it are relative to it.

model: model/                 # a merged folder, or a link to the one in force
keys: keys.yaml
log: serve-log/               # one line for every answer
sign: server.pem              # signs the log's files when they are closed
host: 127.0.0.1
port: 8080
tls: {certificate: cert.pem, key: key.pem}
engines: 1
engine: {kind: packed, dtype: auto, at_once: 32}
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flexo.errors import InputError
from serving.engines.engine import EngineOptions

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Strict):
    """A certificate and its private key, in PEM."""

    certificate: Path
    key: Path


class EngineSettings(Strict):
    """How each engine runs; see `EngineOptions`."""

    kind: Literal["packed", "padded", "vllm"] = "packed"
    dtype: str = "auto"
    device: str = "auto"
    at_once: Count = 32
    pass_tokens: Count = 1024
    block_tokens: Annotated[int, Field(ge=4)] = 32
    blocks: Annotated[int, Field(ge=2)] = 512
    share_prefixes: bool = True
    verify: bool = True
    python: Path | None = None
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _of_vllm(self) -> EngineSettings:
        if (self.kind == "vllm") != bool(self.python) or (self.arguments and self.kind != "vllm"):
            raise ValueError("python, the interpreter of vLLM's environment, goes with kind: vllm, as do arguments")
        return self


class Settings(Strict):
    """Everything that a server is told."""

    model: Path
    keys: Path
    log: Path = Path("serve-log")
    sign: Path | None = None
    log_bytes: Count = 64 << 20  # of a file of the log
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    tls: Tls | None = None
    behind_proxy: bool = False  # another program ends TLS in front
    engines: Count = 1
    engine: EngineSettings = EngineSettings()
    receipt_hours: Seconds = 24.0
    body_bytes: Count = 4_000_000
    body_seconds: Seconds = 30.0
    send_seconds: Seconds = 60.0
    watch_seconds: Annotated[float, Field(ge=0)] = 5.0  # how often to look for another model; 0 waits for SIGHUP
    stop_seconds: Count = 30  # for answers on their way, when the server is stopped
    connections: Count = 1000
    open_metrics: bool = False  # show /metrics to other machines

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        if not (self.tls or self.behind_proxy or _is_loopback(self.host)):
            raise ValueError(
                f"host {self.host}: keys would cross the network unprotected. Give tls, or behind_proxy: true if "
                "another program ends TLS in front"
            )
        return self

    def options(self) -> EngineOptions:
        return EngineOptions(**self.engine.model_dump() | {"python": str(self.engine.python or "")})


def read_settings(path: Path | None, **given: Any) -> Settings:
    """The settings of a YAML file, and over them those of the command line that are not None.

    Raises:
        InputError: the file cannot be read, or a setting is unknown or wrong.
    """
    content: dict[str, Any] = {}
    where = str(path or "the command line")
    if path:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]}).") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected settings such as 'model: model/', got {type(content).__name__}.")
        content = _beside(content, path.parent)
    content |= {name: value for name, value in given.items() if value is not None}
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {f'{name}: ' if name else ''}{message}.") from None


def _beside(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings whose paths are relative to `folder`."""
    paths = {"model", "keys", "log", "sign", "certificate", "key", "python"}
    return {
        name: _beside(value, folder) if isinstance(value, dict) and name in ("tls", "engine")
        else folder / value if name in paths and isinstance(value, str) else value
        for name, value in content.items()
    }  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
