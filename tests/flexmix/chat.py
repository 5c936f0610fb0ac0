"""Chat templates as they are in the wild, and a conversation."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OLMO = (  # as OLMo-2-Instruct has it: the end of text behind each answer, a line end behind all but the last
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\n' + "
    "message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n' + "
    "message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
MISTRAL = (  # no prompt for an answer, and only two roles in turns
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"  # as our own small anchors have it
GENERATION = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}\n"
    "{% endfor %}"
)
THINKING = (  # earlier thoughts are left out, and the prompt opens a new one
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}"
    "{% if loop.last %}<think>{{ message['thought'] }}</think>{% endif %}{{ message['content'] }}<end>{% else %}"
    "{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
TALK = [
    {"role": "user", "content": "Why did the mill stop?"},
    {"role": "assistant", "content": "The river was low.", "thought": "hm"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": " It turns again. \n", "thought": "well"},
]
