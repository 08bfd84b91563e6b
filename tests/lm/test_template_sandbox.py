"""minirl/lm/template_sandbox.py: what a chat template may do, and what stops it.

A template comes with a checkpoint, and anybody may publish one.
"""

import time
from datetime import datetime

import pytest
from jinja2 import TemplateError

from minirl.lm import template_sandbox as sandbox
from minirl.lm.template_sandbox import rendered


@pytest.mark.parametrize(("template", "text"), [
    ("  {% if x %}\n  a\n  {% endif %}\nb\n", "  a\nb"),                    # blocks leave no lines
    ("{{ x | tojson }}", '{"a<b": "안녕 \'"}'),                              # as a model reads it
    ("{{ x | tojson(indent=2) }}", '{\n  "a<b": "안녕 \'"\n}'),
    ("{{ x | tojson(ensure_ascii=True) }}", '{"a<b": "\\uc548\\ub155 \'"}'),
    ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}"
     "{% endif %}{{ i }}{% endfor %}", "013"),
    ("{% for i in [5, 6, 7] %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }} {% endfor %}",
     "0False3 1False3 2True3 "),
    ("{% for i in 'ab' %}{{ loop.previtem }}{{ loop.nextitem }}{% else %}no{% endfor %}", "ba"),
    ("{% for i in nothing %}{% else %}none{% endfor %}", "none"),
    ("{% for k, v in x.items() if v %}{{ k }}{% endfor %}", "a<b"),
    ("{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n * 2 %}{% endfor %}"
     "{{ ns.n }}", "8"),
    ("{{ namespace(self=3).self }}{{ dict(a=1).a }}{{ dict.fromkeys('b', 2) }}", "31{'b': 2}"),
    ("a{% generation %}b{% endgeneration %}c", "abc"),
    ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ '=' * 3 }}{{ 2 ** 10 }}", "<1>===1024"),
    ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ("{{ x.a is defined }}{{ unknown }}", "False"),
    ("{% for a in [[1, [2]]] recursive %}{{ a[0] }}{% if a[1] %}{{ loop([a[1]]) }}{% endif %}"
     "{% endfor %}", "12"),
])
def test_what_templates_may_do(template, text):
    assert rendered(template, {"x": {"a<b": "안녕 '"}}) == text


def test_a_template_may_refuse():
    with pytest.raises(TemplateError, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}", {})


ROUNDS = "{% for i in range(90000) %}{% for j in range(90000) %}"
ENDS = "{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("template", "message"), [
    (ROUNDS + "x" * 100 + ENDS, "it writes more than 4,194,304 characters"),
    (ROUNDS + "{% set x = i %}" + ENDS, "it takes more than 200,000 steps"),
    ("{% set x %}" + ROUNDS + "y" + ENDS + "{% endset %}", "it takes more than 200,000 steps"),
    ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
     "it takes more than 200,000 steps"),
    ("{% for x in range(9) %}{{ (ns or [[1], [2]]) }}{% endfor %}{% for x in [1] recursive %}"
     "{{ loop([1]) }}{{ loop([1]) }}{% endfor %}", "recursion"),
    ("{{ 'x' * 10 ** 10 }}", r"what \* gives is too large"),
    ("{{ 10 ** 9 * [1] }}", r"what \* gives is too large"),
    ("{{ 10 ** (10 ** 10) }}", r"what \*\* gives is too large"),
    ("{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
     "{% endfor %}", r"what \* gives is too large"),
    ("{{ range(10 ** 9) }}", "Range too big"),
])
def test_a_template_ends(template, message):
    """Each of these would run for hours, or take all memory."""
    began = time.perf_counter()
    with pytest.raises(Exception, match=message):
        rendered(template, {})
    assert time.perf_counter() - began < 30    # seconds: for a slow machine


def test_the_bounds_are_of_one_rendering(monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_STEPS", 10)
    for _ in range(3):
        assert rendered("{% for i in range(9) %}{{ i }}{% endfor %}", {}) == "012345678"


@pytest.mark.parametrize("template", [
    "{{ x.__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ x.append.__self__.__class__ }}",
    "{{ x.append(1) }}", "{{ cycler.__init__.__globals__ }}", "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}", "{{ ('%s' | attr('format')).__self__ }}",
    "{{ '{0.__class__}'.format(x) }}", "{{ namespace(__class__=x) }}",
    "{% set ns = namespace() %}{% set ns._Namespace__attrs = x %}", "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}", "{{ dict.mro() }}",
])
def test_python_itself_is_out_of_reach(template):
    """Jinja gives nothing, or raises."""
    try:
        text = rendered(template, {"x": [1]})
    except Exception:
        return
    assert text == ""
