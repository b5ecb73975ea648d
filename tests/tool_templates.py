"""Chat templates that read tools, one of each kind that checkpoints have, in our own words."""

from __future__ import annotations

__all__ = ["BARE", "MARKED", "PLAIN", "TAGGED", "THINKING", "UNLIKE"]

_ENDS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_TOLD = (
    "{% if tools %}{{ '<|im_start|>system\nYou may call:' }}{% for t in tools %}{{ '\n' + (t['function'] | tojson) }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
)

PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + _ENDS
)
"""Reads no tools."""

TAGGED = (
    _TOLD
    + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% for c in m['tool_calls'] or [] %}"
    "{{ ('\n' if m['content'] or not loop.first else '') + '<call>\n' + '{\"name\": \"' + c['function']['name'] + '\", \"arguments\": ' "
    "+ (c['function']['arguments'] | tojson) + '}\n</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + _ENDS
)
"""Between tags that are text, several of them."""

THINKING = TAGGED.replace(
    "{% for c in m['tool_calls'] or [] %}",
    "{% if m['tool_calls'] %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% for c in m['tool_calls'] or [] %}",
    1,
)
"""As TAGGED, with thoughts before."""

MARKED = (
    _TOLD
    + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% if m['tool_calls'] %}{{ '<|calls|>[' }}"
    "{% for c in m['tool_calls'] %}{{ ('' if loop.first else ', ') + '{\"name\": \"' + c['function']['name'] + '\", \"arguments\": ' "
    "+ (c['function']['arguments'] | tojson) + ', \"id\": \"' + c['id'] + '\"}' }}{% endfor %}{{ ']' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + _ENDS
)
"""A list behind a special token."""

BARE = (
    _TOLD
    + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['tool_calls'] %}{% if m['tool_calls'] | length > 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}{{ '{\"name\": \"' + m['tool_calls'][0]['function']['name'] + "
    "'\", \"parameters\": ' + (m['tool_calls'][0]['function']['arguments'] | tojson) + '}' }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + _ENDS
)
"""A reply that begins with a call is one; one at a time."""

UNLIKE = (
    _TOLD
    + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% for c in m['tool_calls'] or [] %}"
    "{{ '<function=' + c['function']['name'] + '>' }}{% for k, v in c['function']['arguments'].items() %}{{ '<' + k + '>' + v }}"
    "{% endfor %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + _ENDS
)
"""Calls that are no JSON."""
