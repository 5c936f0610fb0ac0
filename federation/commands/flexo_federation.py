"""`flexo-federation`: who may submit which expert, what is in force, and who has left; signed, with expiry and history.

flexo-federation init store/ --keys keys/                                       # the coordinator
flexo-federation publish-anchor anchor/ --keys keys/
flexo-federation add-owner math --key alice.pub --keys keys/
flexo-federation join https://example.org/store --root root.json                # everybody else
flexo-federation submit experts/math.pt --key alice.pem                         # an owner
flexo-federation assemble -o model/ --keys keys/                                # the coordinator
flexo-federation verify model/                                                  # anyone
"""

from __future__ import annotations

from federation.commands import coordinator, owner, reader
from flexo.console import new_app, run

app = new_app("Run a federation of experts: roles, policy, expiry, history, on The Update Framework.")


@app.callback()
def about() -> None:
    """Run a federation of experts: roles, policy, expiry, history, on The Update Framework."""
    from flexo.errors import InputError

    try:
        import tuf.api.metadata  # noqa: F401 - only whether it is installed
    except ImportError:
        raise InputError(
            "federations need the package tuf. Install it: pip install -c constraints.txt 'flexo[federation]'"
        ) from None


for panel, module in {"Coordinator": coordinator, "Owner": owner, "Anyone": reader}.items():
    for command in module.COMMANDS:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
