"""Hostile Jinja chat templates: loops and texts without end, and ways out of a sandbox."""

import random
from typing import Any

from drill.format_bytes import damage_bytes

CANARY = "canary"  # a file that only executed code would make
_ESCAPE = f"os.open('{CANARY}', 65)"
_LOOP = "{% for i in range(99999) %}"
HOSTILE = [
    ("a loop of 10^12", "{% for i in range(1000000000000) %}x{% endfor %}"),
    ("loops in loops", _LOOP + _LOOP + "x{% endfor %}{% endfor %}"),
    ("10^10 letters", "{{ 'x' * 10000000000 }}"),
    ("a power without end", "{{ 10 ** 10 ** 10 }}"),
    ("padding to 10^10", "{{ '%10000000000d' % 1 }}{{ 'x'.center(10000000000) }}"),
    ("a macro that calls itself", "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}"),
    ("doubling text", "{% set n = namespace(t='x') %}" + _LOOP
     + "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}"),
    ("globals of a function", "{{ cycler.__init__.__globals__." + _ESCAPE + " }}"),
    ("subclasses", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ("a format string", "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}"),
    ("attr filter", "{{ messages|attr('__class__')|attr('__mro__') }}"),
    ("import", "{% import 'os' as os %}{{ os.system('touch " + CANARY + "') }}"),
    ("include", "{% include '/etc/passwd' %}"),
    ("a change of the messages", "{{ messages.append(messages) }}{{ messages }}"),
    ("an unknown tag", "{% frobnicate %}"),
    ("not closed", "{% for m in messages %}{{ m['content'] "),
    ("10,000 brackets", "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}"),
    ("10,000 ifs", "{% if true %}" * 10_000 + "{% endif %}" * 10_000),
    ("division by zero", "{{ 1 / 0 }}"),
    ("undefined", "{{ a.b.c.d }}"),
    ("raise_exception", "{{ raise_exception('no\nnewlines') }}"),
    ("a long replacement", "{{ messages | string | replace('a', 'b' * 100000000) }}"),
    ("no messages", "hello"),
    ("lipsum", "{{ lipsum(n=1000000) }}"),
    ("lipsum's globals", "{{ lipsum.__globals__['os'].system('touch " + CANARY + "') }}"),
]  # fmt: skip


class Template:
    """A chat template in a file of its own."""

    name = "template"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged template, the field and what was done to it."""
        how, text = rng.choice(HOSTILE)
        kind = rng.randrange(4)
        if kind == 0:
            return text.encode(), "template", how
        if kind == 1:
            return content + text.encode(), "template", f"{how}, appended"
        if kind == 2:
            middle = content.find(b"{{")
            return content[:middle] + text.encode() + content[middle:], "template", f"{how}, inside"
        damaged, how = damage_bytes(content, rng)
        return damaged, "template", how

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The new text; None if it is not UTF-8."""
        try:
            return {"template": damaged.decode()}
        except UnicodeDecodeError:
            return None
