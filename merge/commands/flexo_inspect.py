"""`flexo-inspect experts/math.pt`: what an expert file, a merged model or an anchor says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flexo.console import new_app, progress, run, size_text
from merge.commands.options import TrustedKeysOption, printable

app = new_app("Show what an expert file, a merged model or an anchor says about itself.")


def main() -> None:
    run(app)


@app.command(epilog="Examples:\n\n`flexo-inspect experts/math.pt`\n\n`flexo-inspect model/ --json`")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="An expert file (.pt or .safetensors), a merged folder or an anchor.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every tensor of an expert file for damage.")] = False,
    trusted_keys: TrustedKeysOption = None,
) -> None:
    """Show what an expert file, a merged model or an anchor says about itself."""
    from merge.formats.inspection import inspect

    about = inspect(path, verify=verify, trusted_keys=trusted_keys, progress=progress)
    if not as_json and isinstance(about.get("tensors"), dict):
        size = sum(file.stat().st_size for file in (path.glob("*.safetensors") if path.is_dir() else [path]))
        about["tensors"] = f"{len(about['tensors'])} in {size_text(size)}, each with its sha256; --json lists them"
    typer.echo(json.dumps(about, indent=2, ensure_ascii=False) if as_json else "\n".join(map(printable, _lines(about))))


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested values as indented `name: value` lines."""
    lines: list[str] = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            lines += [f"{indent}{name}:", *_lines(entry, indent + "  ")]
        elif isinstance(entry, list) and any(isinstance(item, dict) for item in entry):
            lines.append(f"{indent}{name}:")
            for item in entry:
                lines += [f"{indent}  - {line.strip()}" if not i else f"{indent}    {line}"
                          for i, line in enumerate(_lines(item))]  # fmt: skip
        else:
            lines.append(f"{indent}{name}: {'-' if entry is None else entry}")
    return lines
