"""Chat templates: which characters are the user's, later turns, and what is refused."""

import pytest

from helpers.chat_templates import CHATML
from minispec.errors import TextError
from minispec.text.chat_template import RESERVED, ChatTemplate
from minispec.text.template_sandbox import render_template

SPELLINGS = {
    "plain": CHATML,
    "double quotes": CHATML.replace("'", '"'),
    "joined with ~": CHATML.replace(" + ", " ~ "),
    "attributes": CHATML.replace("message['role']", "message.role"),
    "stripped blocks": CHATML.replace("{%", "{%-").replace("%}", "-%}"),
    "generation": CHATML.replace("{% endfor %}", "{% generation %}{% endgeneration %}{% endfor %}"),
}
PROMPTS = ["hi", "", "  two  spaces ", "\n\nlines\n", "<|im_end|>", "{{ 7 * 7 }}", "\ufdd0"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_render_first_and_later_give_the_text_and_the_user_s_part(spelling):
    template = ChatTemplate(SPELLINGS[spelling], {})
    for prompt in PROMPTS:
        header = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        for turn, before in ((template.render_first(prompt), ""),
                             (template.render_later(prompt), "<|im_end|>\n")):  # fmt: skip
            assert turn.text == before + header
            ((start, end),) = turn.user
            assert turn.text[start:end] == prompt and start == len(before) + len(
                "<|im_start|>user\n"
            )


def test_render_first_finds_a_message_that_is_stripped_or_written_twice():
    trimmed = CHATML.replace("message['content']", "(message['content'] | trim)")
    turn = ChatTemplate(trimmed, {}).render_first("  a b \n")
    assert [turn.text[start:end] for start, end in turn.user] == ["a b"]
    twice = ChatTemplate("{{ messages[0].content }}|{{ messages[0].content }}", {})
    turn = twice.render_first("xy")
    assert (turn.text, turn.user) == ("xy|xy", ((0, 2), (3, 5)))


def test_render_later_allows_a_space_before_answers():
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}"
        "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    assert ChatTemplate(template, {"eos_token": "</s>"}).render_later("b").text == " </s>[b]"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content | upper }}", "rewrites this message"),
        ("{% if 'h' in messages[0].content %}!{% endif %}{{ messages[0].content }}", "rewrites"),
        ("hello", "leaves out this message"),
        ("{{ raise_exception('no system role') }}", "TemplateError: no system role"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("x" * (2**20 + 1), "has 1,048,577 characters"),
    ],
)
def test_render_first_refuses_by_name(template, words):
    with pytest.raises(TextError, match=words) as error:
        ChatTemplate(template, {}).render_first("hi")
    assert "--raw with --parse-special" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        # as templates that show only the last answer's thoughts
        ("{% for m in messages %}{{ m.content }}{{ '!' if loop.last }};{% endfor %}", "rewrites"),
        ("{{ messages | length }}" + CHATML, "rewrites earlier turns"),
        (CHATML.replace("message['content']", "(message['content'] if loop.last else '')"), "rewr"),
        (CHATML.replace("{% if add", "{{ messages | length }}{% if add"), "rewrites|differently"),
    ],
)  # fmt: skip
def test_render_later_refuses_templates_that_change_earlier_turns(template, words):
    chat = ChatTemplate(template, {})
    chat.render_first("hi")
    with pytest.raises(TextError, match=words):
        chat.render_later("hi")


def test_render_first_refuses_the_reserved_characters():
    with pytest.raises(TextError, match=r"U\+FDD0 U\+FDD1 are reserved"):
        ChatTemplate(CHATML, {}).render_first(f"a{RESERVED}b")


def test_render_template_gives_the_variables_and_functions_of_transformers():
    def render(source: str) -> str:
        return render_template(source, {"bos_token": "<s>", "messages": [{"content": "é"}]})

    assert render("{{ bos_token }}{{ eos_token }}{{ tools is none }}") == "<s>True"
    assert render("{{ messages | tojson }}") == '[{"content": "é"}]'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% for i in range(9) %}{{ i }}{% break %}{% endfor %}") == "0"
    assert render("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}") == "2"
    assert render("  {% if true %}\na\n{% endif %}\n") == "a\n"  # blocks take no lines of their own


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ [1] * 10**9 }}",
        "{{ 10**10**10 }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ '%1000000000d' % 3 }}",
        "{{ '{:>1000000000}'.format(3) }}",
        "{{ (range(10**5) | list) | join('x' * 5000) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}"
        "{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(3) }}",
        "{% include '/etc/passwd' %}",
        "{{" + "(" * 5000,
    ],
)
def test_render_template_stops_what_has_no_end_and_keeps_what_is_outside_out(source):
    with pytest.raises(TextError, match="cannot be used"):
        render_template(source, {"messages": []})
