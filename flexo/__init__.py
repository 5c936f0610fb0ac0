"""Federated training of language-model experts: the public names (`__init__.pyi`), and the floor that rooms stand on.

    import flexo

    model, tokenizer = flexo.load_model("model/")
    with flexo.select_experts(model, ["public", "math"]):
        ...

Nothing is imported before it is asked for. The floor is errors, files that appear whole or not at all, the console, the
config folder, and folders that are made once.
"""

from flexo.lazy_names import show_face

__all__ = show_face(__name__)
