"""Chat templates of several families, and tokens that they write."""

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "headers": (  # as Llama 3
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|head|>' ~ m.role ~ '<|body|>\n\n' ~ m.content | trim ~ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|body|>\n\n' }}{% endif %}"
    ),
    "instructions": (  # as Llama 2
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' "
        "+ m.content.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "turns": (  # as Gemma
        "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else "
        "m.role %}{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
}
NAMES = (
    "<|im_start|>", "<|im_end|>", "<|head|>", "<|body|>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
