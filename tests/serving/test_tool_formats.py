"""Which form calls have is read from the chat template's text."""

from __future__ import annotations

import pytest

from nereid.serving.gateway.tool_formats import TOOL_FORMATS, format_of

from template_families import FAMILIES


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("hermes", "hermes"),
        ("qwen 2.5", "hermes"),
        ("mistral", "mistral"),
        ("llama 3.1 with tools", "llama3_json"),
        ("gpt-oss", "harmony"),
        ("deepseek v3 with tools", "deepseek_v3"),
        ("deepseek v3.1 with tools", "deepseek_v31"),
        ("deepseek v3.2 with tools", "deepseek_v32"),
        ("kimi k2 with tools", "kimi_k2"),
        ("nemotron nano 2 with tools", "nemotron"),
        ("nemotron 3 nano with tools", "qwen3_coder"),
        ("glm 4.6 with tools", "glm45"),
        ("minimax m2 with tools", "minimax_m2"),
        ("command r7b with tools", "cohere"),
        ("lfm2 with tools", "lfm2"),
        ("gemma 4 with tools", "gemma4"),
        ("kimi k3 with tools", "kimi_k3"),
        ("minimax m3 with tools", "minimax_m3"),
        ("gigachat 3 with tools", "gigachat3"),
        ("gigachat 3.5 with tools", "gigachat35"),
        ("step 3 with tools", "step3"),
        ("apertus with tools", "apertus"),
        ("chatml", None),
        ("gemma", None),
    ],
)
def test_a_templates_form_is_read_from_its_text(family: str, form: str | None) -> None:
    found = format_of(FAMILIES[family])
    assert (found.name if found else None) == form


def test_forms_with_the_same_mark_are_told_apart() -> None:
    assert format_of("<seed:tool_call>\n<function={{ name }}>\n<parameter=x>") is TOOL_FORMATS["seed_oss"]
    assert format_of("<other_call>\n<function={{ name }}>\n<parameter=x>") is None
    assert format_of("[TOOL_CALLS]{{ name }}[ARGS]") is TOOL_FORMATS["mistral_args"]
    assert format_of("<tool_call>\n<function={{ name }}>\n<parameter=x>") is TOOL_FORMATS["qwen3_coder"]
    assert format_of("respond with <|tool_call|> followed by a JSON list") is TOOL_FORMATS["granite"]
    assert format_of("<|tool_call|>{{ call }}<|/tool_call|>") is TOOL_FORMATS["phi4_mini"]
    assert format_of("functools[{{ call }}]") is TOOL_FORMATS["phi4_mini_json"]
    assert format_of("<|im_system|>tool_declare<|im_middle|>{{ tools }}") is TOOL_FORMATS["kimi_k2"]
    assert format_of("<｜DSML｜tool_calls>") is TOOL_FORMATS["deepseek_v4"]
    assert format_of("<tool_call>{{ name }}<arg_key>{{ key }}</arg_key>") is TOOL_FORMATS["glm47"]
    assert format_of("<tool_calls>[{{ calls }}]</tool_calls>") is TOOL_FORMATS["hunyuan"]
    assert format_of("<longcat_tool_call>{{ call }}") is TOOL_FORMATS["longcat"]
    assert format_of("<|action_start|><|plugin|>{{ call }}") is TOOL_FORMATS["internlm"]
    assert format_of("List of tools: <|tool_list_start|>") is TOOL_FORMATS["lfm2"]
    assert format_of("put calls within <function_calls></function_calls>") is TOOL_FORMATS["olmo3"]
    assert format_of("[func_name1(params_name1=params_value1)] ipython") is TOOL_FORMATS["pythonic"]
    assert format_of("[func_name1(param1=value1, param2=value2), func_name2(...)]") is TOOL_FORMATS["pythonic"]
    assert format_of("<start_function_call>{{ call }}<end_function_call>") is TOOL_FORMATS["functiongemma"]
    assert format_of("<|role_sep|><|message_sep|><|function_call|>{{ call }}") is TOOL_FORMATS["gigachat31"]
    assert format_of("<longcat_tool_call>{{ name }}<longcat_arg_key>") is TOOL_FORMATS["longcat_tags"]
    assert format_of("<tool_calls><tool_call>{{ name }}<tool_sep><arg_key>") is TOOL_FORMATS["hy3"]
    assert format_of("<tool_calls:opensource><tool_call:opensource>{{ name }}<arg_key:opensource>") is TOOL_FORMATS["hy4"]
    assert format_of("<ifm|tool_calls><ifm|tool_call>{{ name }}<ifm|arg_key>") is TOOL_FORMATS["k2_horizon"]
    assert format_of("<|tool_call:start|>{{ name }}<|tool_arg:start|>") is TOOL_FORMATS["solar_open2"]
    assert format_of('<function name="{{ name }}"><param name="{{ key }}">') is TOOL_FORMATS["minicpm5"]
    assert format_of('<dots_function_call>\n<invoke name="{{ name }}">') is TOOL_FORMATS["dots"]
    assert format_of("<|function_call_library|> <function_call> {{ call }}") is TOOL_FORMATS["granite_20b_fc"]
    assert format_of('make calls in a single JSON array: [{"name": "tool_call_name", "arguments": {}}]') is TOOL_FORMATS["xlam"]
