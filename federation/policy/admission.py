"""Whether an expert is accepted, and if not, why, in words for its owner.

Headers are enough, so owners are told before anything is uploaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from federation.policy.policy import Policy
from flexo.errors import InputError
from flexo.rooms import module_name
from merge.formats.expert_header import Header
from merge.planning.compatibility import privacy_objection


def objections(
    header: Header, policy: Policy, anchors: Collection[str], left: Collection[str], held: Mapping[str, str]
) -> list[str]:
    """What speaks against an expert; nothing if it is accepted.

    Args:
        header: of the expert.
        policy: of the federation.
        anchors: digests of the anchors that experts may be trained against.
        left: digests of experts that were withdrawn.
        held: network -> domain of what is in force.
    """
    found = []
    if header.digest in left:
        found.append(
            "this very expert was withdrawn from the federation, and comes back under no name. Train another, or, if "
            "you withdrew it yourself and changed your mind: submit --readmit"
        )
    if (other := held.get(header.network, header.domain)) != header.domain:
        found.append(
            f"its network is that of {other!r}, which is in force: one network under two names would count twice, and "
            "whoever withdrew the one would take the other along. One of the two owners keeps it"
        )
    if header.anchor.digest not in anchors:
        found.append(
            f"it was trained against the anchor {header.anchor.digest[:12]}, this federation has "
            f"{' and '.join(digest[:12] for digest in anchors) or 'none yet'}. Get it with fetch-anchor and train again"
        )
    if policy.licences and header.licence not in policy.licences:
        found.append(
            f"its licence is {header.licence!r}, the policy allows {', '.join(policy.licences)}. "
            "Set domain.licence and export it again"
        )
    if header.data.tokens < policy.smallest_tokens:
        found.append(
            f"{header.data.tokens} tokens of private text stand behind it, the policy asks for "
            f"{policy.smallest_tokens} or more: a small text shows through its expert"
        )
    asked = policy.largest_epsilon
    if said := privacy_objection(header, asked, required=asked is not None):
        found.append(said)
    return found


def audit(files: Sequence[Path], anchor: Path, policy: Policy) -> list[str]:
    """What `flexo-audit` refuses at the policy's limits; nothing without such limits.

    The audit runs models, so it runs in a process of its own. Raises `InputError` where it cannot run.
    """
    if not policy.audit:
        return []
    if not can_audit():
        raise InputError("the policy asks for flexo-audit, which is not installed here. Install flexo with its extras.")
    command = [sys.executable, "-m", "evals.commands.flexo_audit", *map(str, files), "--anchor", str(anchor), "--json"]
    for name, values in policy.audit.items():
        command += [f"--{name}", *map(str, values if isinstance(values, list) else [values])]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        experts = json.loads(done.stdout)["experts"]
        return [f"{entry['domain']}: {text}" for entry in experts for text in entry["refusals"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"flexo-audit did not finish: {done.stderr.strip()[-500:] or done.returncode}") from None


def can_audit() -> bool:
    """Whether what runs a model is installed here."""
    try:
        return find_spec("transformers") is not None and find_spec(module_name("evals")) is not None
    except ModuleNotFoundError:
        return False
