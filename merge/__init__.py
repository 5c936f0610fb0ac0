"""Expert files, checkpoints and merging: files and names only, no model is ever run here.

`errors`, `files` and `console` are the ground floor that every other room may stand on (standard library and Typer).
Above it: `expert_file` (what an owner ships), `flexolmo` (names and numbers of the architectures), `checkpoint`
(reading and writing model folders), `assemble` (plan and execute a merge), `cli`.
"""
