"""The YAML of lm-eval's tasks and groups. Names are written as JSON strings, which YAML reads as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence

HEAD = """\
task: {task}
custom_dataset: !function items.read
dataset_kwargs:
  file: {file}
test_split: test
metadata:
  version: 1.0
"""

# The likelihood of whole documents. Mean and sum are over all documents together, as in flexo-eval.
TEXT = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
num_fewshot: 0
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
  - metric: byte_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""

# The first number that the model writes, to its last digit: an answer that starts right and goes on is wrong.
EXACT = """\
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
fewshot_split: test
generation_kwargs:
  do_sample: false
  max_gen_toks: 16
  until: ["\\n"]
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: '(-?\\d+(?:[.,]\\d+)*)'
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""

# acc: the likeliest choice. acc_mutual_info: the choice that the prompt makes likelier by the largest factor.
CHOICE = """\
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_mutual_info
    aggregation: mean
    higher_is_better: true
"""

GROUP = """\
group: {group}
task: {tasks}
metadata:
  version: 1.0
"""

# The mean over the domains, each counting the same.
MEAN = """\
aggregate_metric_list:
  - metric: bits_per_byte
    aggregation: mean
    weight_by_size: false
"""


def task_yaml(task: str, file: str, body: str) -> str:
    """A task that reads `file`, a name in its own folder."""
    return HEAD.format(task=json.dumps(task), file=json.dumps(file)) + body


def group_yaml(group: str, tasks: Sequence[str], body: str = "") -> str:
    return GROUP.format(group=json.dumps(group), tasks=json.dumps(list(tasks))) + body
