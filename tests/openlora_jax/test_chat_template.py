import pytest
from transformers import PreTrainedTokenizerFast

from openlora_jax import chat_template
from openlora_jax.chat_template import ChatTemplate
from openlora_jax.errors import InvalidRequest
from tests.openlora_jax.test_tokenizer import byte_level

MESSAGES = [{"role": "system", "content": "<be> brief"}, {"role": "user", "content": "hé"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "<|end|>"}


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}\n  {% endif %}\n{{ m['role'] }}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}",
        "{% if tools %}tools{% endif %}{{ messages[0].content | trim }}{% if add_generation_prompt %}go{% endif %}",
        "{{ messages[-1].content.strip() + eos_token }}{{ dict(a=1)['a'] }}{{ missing }}",
    ],
)
def test_renders_as_transformers_does(source: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=source, **SPECIAL)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source, SPECIAL).render(MESSAGES) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages[7].content.strip() }}", "messages: the chat template refuses them"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ range(10 ** 9) | list }}", "too big"),
    ],
)
def test_whatever_a_template_does_is_one_error(source: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ChatTemplate(source, SPECIAL).render(MESSAGES)


def test_endless_prompts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDERED", 10)
    template = ChatTemplate("{% for i in range(9000) %}{{ i }}{% endfor %}", SPECIAL)
    with pytest.raises(InvalidRequest, match="more than 10 characters"):
        template.render(MESSAGES)
