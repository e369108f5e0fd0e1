"""An answer in each form of calls: a text, a call with two arguments, one of them with the letters of JSON, and one with none."""

from __future__ import annotations

import re

from template_families import deepseek, dsml


def minimax(text: str) -> str:
    """MiniMax M3's marks for `%`."""
    return text.replace("%", "]<]minimax[>[")


def step(text: str) -> str:
    """Step 3's marks, whose bars are wide, for plain ones."""
    return text.replace("<|", "<｜").replace("|>", "｜>")


def xtml(text: str) -> str:
    """Kimi K3's tags for those in square brackets."""
    return re.sub(r"\[(/?)([a-z]+[^\[\]]*)\]", lambda tag: f"<|{'close' if tag[1] else 'open'}|>{tag[2]}<|sep|>", text)


ANSWERS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "warmth", "parameters": {"city": "Łó\\"dź } ]", "days": 2}}; {"name": "now", "parameters": {}}',
    "mistral": 'Let me see.[TOOL_CALLS][{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"name": "now", "arguments": {}}]',
    "mistral_args": 'Let me see.[TOOL_CALLS]warmth[CALL_ID]123456789[ARGS]{"city": "Łó\\"dź } ]", "days": 2}'
    "[TOOL_CALLS]now[ARGS]{}",
    "granite": 'Let me see. <|tool_call|>[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"arguments": {}, "name": "now"}]',
    "qwen3_coder": 'Let me see.\n<tool_call>\n<function=warmth>\n<parameter=city>\nŁó"dź } ]\n</parameter>\n'
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "seed_oss": 'Let me see.\n<seed:tool_call>\n<function=warmth>\n<parameter=city>Łó"dź } ]</parameter>\n<parameter=days>2'
    "</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>",
    "harmony": "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.warmth "
    '<|constrain|>json<|message|>{"city": "Łó\\"dź } ]", "days": 2}<|call|><|start|>assistant to=functions.now'
    "<|channel|>commentary json<|message|>{}",
    "deepseek_v3": deepseek(
        "Let me see.<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>warmth\n```json\n"
        '{"city": "Łó\\"dź } ]", "days": 2}'
        "\n```<|tool_call_end|>\n<|tool_call_begin|>function<|tool_sep|>now\n```json\n{}\n```<|tool_call_end|><|tool_calls_end|>"
    ),
    "deepseek_v31": deepseek(
        'Let me see.<|tool_calls_begin|><|tool_call_begin|>warmth<|tool_sep|>{"city": "Łó\\"dź } ]", "days": 2}<|tool_call_end|>'
        "<|tool_call_begin|>now<|tool_sep|>{}<|tool_call_end|><|tool_calls_end|>"
    ),
    "longcat": 'Let me see.\n<longcat_tool_call>\n{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}\n'
    '</longcat_tool_call>\n<longcat_tool_call>\n{"name": "now", "arguments": {}}\n</longcat_tool_call>',
    "internlm": 'Let me see.<|action_start|><|plugin|>\n{"name": "warmth", "parameters": {"city": "Łó\\"dź } ]", "days": 2}}'
    '<|action_end|>\n<|action_start|><|plugin|>\n{"name": "now", "parameters": {}}<|action_end|>',
    "phi4_mini": 'Let me see.<|tool_call|>[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"name": "now", "arguments": {}}]<|/tool_call|>',
    "phi4_mini_json": 'Let me see. functools[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"name": "now", "arguments": {}}]',
    "nemotron": 'Let me see.\n\n<TOOLCALL>[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"name": "now", "arguments": {}}]</TOOLCALL>',
    "hunyuan": 'Let me see.\n<tool_calls>[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"name": "now", "arguments": {}}]</tool_calls>',
    "cohere": 'Let me see.<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "warmth", "parameters": {"city": '
    '"Łó\\"dź } ]", "days": 2}},\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
    "glm45": 'Let me see.\n<tool_call>warmth\n<arg_key>city</arg_key>\n<arg_value>Łó"dź } ]</arg_value>\n<arg_key>days</arg_key>'
    "\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
    "glm47": 'Let me see.<tool_call>warmth<arg_key>city</arg_key><arg_value>Łó"dź } ]</arg_value><arg_key>days</arg_key>'
    "<arg_value>2</arg_value></tool_call><tool_call>now</tool_call>",
    "minimax_m2": 'Let me see.\n<minimax:tool_call>\n<invoke name="warmth">\n<parameter name="city">Łó"dź } ]</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
    "deepseek_v32": dsml(
        'Let me see.\n\n<%function_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łó"dź } ]</%parameter>'
        '\n<%parameter name="days" string="false">2</%parameter>\n</%invoke>\n<%invoke name="now">\n</%invoke>\n'
        "</%function_calls>"
    ),
    "deepseek_v4": dsml(
        'Let me see.\n\n<%tool_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łó"dź } ]</%parameter>\n'
        '<%parameter name="days" string="false">2</%parameter>\n</%invoke>\n<%invoke name="now">\n</%invoke>\n</%tool_calls>'
    ),
    "kimi_k2": "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.warmth:0<|tool_call_argument_begin|>"
    '{"city": "Łó\\"dź } ]", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
    "<|tool_call_end|><|tool_calls_section_end|>",
    "pythonic": """[warmth(city='Łó"dź } ]', days=2), now()]""",
    "lfm2": """Let me see.<|tool_call_start|>[warmth(city='Łó"dź } ]', days=2), now()]<|tool_call_end|>""",
    "olmo3": """Let me see.\n<function_calls>warmth(city='Łó"dź } ]', days=2)\nnow()</function_calls>""",
    "gemma4": """Let me see.<|tool_call>call:warmth{city:<|"|>Łó"dź } ]<|"|>,days:2}<tool_call|>"""
    "<|tool_call>call:now{}<tool_call|>",
    "functiongemma": """Let me see.<start_function_call>call:warmth{city:<escape>Łó"dź } ]<escape>,days:2}<end_function_call>"""
    "<start_function_call>call:now{}<end_function_call>",
    "apertus": 'Let me see.<|tools_prefix|>[{"warmth": {"city": "Łó\\"dź } ]", "days": 2}}, {"now": {}}]<|tools_suffix|>',
    "xlam": '[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, {"name": "now", "arguments": {}}]',
    "granite_20b_fc": 'Let me see.\n<function_call> {"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}\n'
    '<function_call> {"name": "now", "arguments": {}}',
    "gigachat3": 'Let me see.<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "warmth", "arguments": {"city": '
    '"Łó\\"dź } ]", "days": 2}}<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "now", "arguments": {}}<|message_sep|>\n\n',
    "gigachat31": 'Let me see.<|function_call|>{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}'
    '<|function_call|>{"name": "now", "arguments": {}}<|message_sep|>\n\n',
    "gigachat35": dsml(
        'Let me see.\n\n<%tool_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łó"dź } ]</%parameter>\n'
        '<%parameter name="days" string="false">2</%parameter>\n</%invoke>\n<%invoke name="now">\n</%invoke>\n</%tool_calls>'
    ).replace("DSML", "GCML"),
    "longcat_tags": "Let me see.\n<longcat_tool_call>warmth\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>"
    'Łó"dź } ]</longcat_arg_value>\n'
    "<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>2</longcat_arg_value>\n"
    "</longcat_tool_call>\n<longcat_tool_call>now\n</longcat_tool_call>",
    "solar_open2": 'Let me see.<|tool_call:start|>warmth\n<|tool_arg:start|>city<|tool_arg:value|>Łó"dź } ]<|tool_arg:end|>\n'
    "<|tool_arg:start|>days<|tool_arg:value|>2<|tool_arg:end|>\n<|tool_call:end|>\n<|tool_call:start|>now\n<|tool_call:end|>",
    "minicpm5": 'Let me see.\n<function name="warmth"><param name="city">Łó"dź } ]</param><param name="days">2</param></function>'
    '\n<function name="now"></function>',
    "hy3": 'Let me see.\n<tool_calls>\n<tool_call>warmth<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Łó"dź } ]</arg_value>\n'
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now<tool_sep>\n</tool_call>\n</tool_calls>",
    "hy4": 'Let me see.<tool_calls><tool_call>warmth<arg_key>city</arg_key><arg_value>Łó"dź } ]</arg_value>'
    "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call><tool_call>now</tool_call></tool_calls>".replace(
        ">", ":opensource>"
    ),
    "k2_horizon": "Let me see.\n<ifm|tool_calls>\n<ifm|tool_call>warmth\n<ifm|arg_key>city</ifm|arg_key>\n<ifm|arg_value>"
    'Łó"dź } ]</ifm|arg_value>\n<ifm|arg_key>days</ifm|arg_key>\n<ifm|arg_value>2</ifm|arg_value>\n</ifm|tool_call>\n'
    "<ifm|tool_call>now\n</ifm|tool_call>\n</ifm|tool_calls>",
    "minimax_m3": minimax(
        'Let me see.\n%<tool_call>\n%<invoke name="warmth">%<city>Łó"dź } ]%</city>%<days>2%</days>%</invoke>\n'
        '%<invoke name="now">%</invoke>\n%</tool_call>'
    ),
    "dots": 'Let me see.\n<dots_function_call>\n<invoke name="warmth">\n<parameter name="city">Łó"dź } ]</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</dots_function_call>',
    "step3": step(
        'Let me see.\n<|tool_calls_begin|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="warmth">\n'
        '<steptml:parameter name="city">Łó"dź } ]</steptml:parameter>\n<steptml:parameter name="days">2</steptml:parameter>\n'
        '</steptml:invoke><|tool_call_end|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="now">\n'
        "</steptml:invoke><|tool_call_end|>\n<|tool_calls_end|>"
    ),
    "kimi_k3": xtml(
        '[response]Let me see.[/response][tools][call tool="warmth" index="1"][argument key="city" type="string"]Łó"dź } ]'
        '[/argument][argument key="days" type="number"]2[/argument][/call][call tool="now" index="2"][/call][/tools][/message]'
    )
    + "<|end_of_msg|>",
}

REAL_MARKS = ("｜DSML｜", "｜GCML｜", "<|open|>", "<|close|>", "<|sep|>", "]<]minimax[>[", "<|role_sep|>", "<|message_sep|>")
"""Tokens of models whose marks have more than one."""
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}\n</tool_call>',
    "llama3_json": '{"name": "warmth", "parameters": {"city": "Łódź", "unit": {"c": true}}}',
    "mistral": '[TOOL_CALLS][{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]',
    "mistral_args": '[TOOL_CALLS]warmth[ARGS]{"city": "Łódź", "unit": {"c": true}}',
    "granite": '<|tool_call|>[{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]',
    "qwen3_coder": "<tool_call>\n<function=warmth>\n<parameter=city>\nŁódź\n</parameter>\n<parameter=unit>\n"
    '{"c": true}\n</parameter>\n</function>\n</tool_call>',
    "seed_oss": "<seed:tool_call>\n<function=warmth>\n<parameter=city>\nŁódź\n</parameter>\n<parameter=unit>\n"
    '{"c": true}\n</parameter>\n</function>\n</seed:tool_call>',
    "harmony": ' to=functions.warmth<|channel|>commentary json<|message|>{"city": "Łódź", "unit": {"c": true}}',
    "deepseek_v3": deepseek(
        "<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>warmth\n```json\n"
        '{"city": "Łódź", "unit": {"c": true}}\n```<|tool_call_end|><|tool_calls_end|>'
    ),
    "deepseek_v31": deepseek(
        "<|tool_calls_begin|><|tool_call_begin|>warmth<|tool_sep|>"
        '{"city": "Łódź", "unit": {"c": true}}<|tool_call_end|><|tool_calls_end|>'
    ),
    "longcat": '<longcat_tool_call>\n{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}\n'
    "</longcat_tool_call>",
    "internlm": '<|action_start|><|plugin|>\n{"name": "warmth", "parameters": {"city": "Łódź", "unit": {"c": true}}}\n'
    "<|action_end|>",
    "phi4_mini": '<|tool_call|>[{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]<|/tool_call|>',
    "phi4_mini_json": 'functools[{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]',
    "nemotron": '<TOOLCALL>[{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]</TOOLCALL>',
    "hunyuan": '<tool_calls>[{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]</tool_calls>',
    "cohere": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "warmth", "parameters": {"city": "Łódź", "unit": '
    '{"c": true}}}\n]<|END_ACTION|>',
    "glm45": "<tool_call>warmth\n<arg_key>city</arg_key>\n<arg_value>Łódź</arg_value>\n<arg_key>unit</arg_key>\n"
    '<arg_value>{"c": true}</arg_value>\n</tool_call>',
    "glm47": "<tool_call>warmth<arg_key>city</arg_key><arg_value>Łódź</arg_value><arg_key>unit</arg_key>"
    '<arg_value>{"c": true}</arg_value></tool_call>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="warmth">\n<parameter name="city">Łódź</parameter>\n'
    '<parameter name="unit">{"c": true}</parameter>\n</invoke>\n</minimax:tool_call>',
    "deepseek_v32": dsml(
        '<%function_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
        '<%parameter name="unit" string="false">{"c": true}</%parameter>\n</%invoke>\n</%function_calls>'
    ),
    "deepseek_v4": dsml(
        '<%tool_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
        '<%parameter name="unit" string="false">{"c": true}</%parameter>\n</%invoke>\n</%tool_calls>'
    ),
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.warmth:0<|tool_call_argument_begin|>"
    '{"city": "Łódź", "unit": {"c": true}}<|tool_call_end|><|tool_calls_section_end|>',
    "pythonic": '[warmth(city="Łódź", unit={"c": true})]',
    "lfm2": '<|tool_call_start|>[warmth(city="Łódź", unit={"c": true})]<|tool_call_end|>',
    "olmo3": '<function_calls>\nwarmth(city="Łódź", unit={"c": true})\n</function_calls>',
    "gemma4": '<|tool_call>call:warmth{city:<|"|>Łódź<|"|>,unit:{"c":true}}<tool_call|>',
    "functiongemma": '<start_function_call>call:warmth{city:<escape>Łódź<escape>,unit:{"c":true}}<end_function_call>',
    "apertus": '<|tools_prefix|>[{"warmth": {"city": "Łódź", "unit": {"c": true}}}]<|tools_suffix|>',
    "xlam": '[{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}]',
    "granite_20b_fc": '<function_call> {"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}',
    "gigachat3": 'function call<|role_sep|>\n{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}',
    "gigachat31": '<|function_call|>{"name": "warmth", "arguments": {"city": "Łódź", "unit": {"c": true}}}',
    "gigachat35": dsml(
        '<%tool_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
        '<%parameter name="unit" string="false">{"c": true}</%parameter>\n</%invoke>\n</%tool_calls>'
    ).replace("DSML", "GCML"),
    "longcat_tags": "<longcat_tool_call>warmth\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Łódź"
    '</longcat_arg_value>\n<longcat_arg_key>unit</longcat_arg_key>\n<longcat_arg_value>{"c": true}</longcat_arg_value>\n'
    "</longcat_tool_call>",
    "solar_open2": "<|tool_call:start|>warmth\n<|tool_arg:start|>city<|tool_arg:value|>Łódź<|tool_arg:end|>\n"
    '<|tool_arg:start|>unit<|tool_arg:value|>{"c": true}<|tool_arg:end|>\n<|tool_call:end|>',
    "minicpm5": '<function name="warmth"><param name="city">Łódź</param><param name="unit">{"c": true}</param></function>',
    "hy3": "<tool_calls>\n<tool_call>warmth<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Łódź</arg_value>\n"
    '<arg_key>unit</arg_key>\n<arg_value>{"c": true}</arg_value>\n</tool_call>\n</tool_calls>',
    "hy4": "<tool_calls><tool_call>warmth<arg_key>city</arg_key><arg_value>Łódź</arg_value><arg_key>unit</arg_key>"
    '<arg_value>{"c": true}</arg_value></tool_call></tool_calls>'.replace(">", ":opensource>"),
    "k2_horizon": "<ifm|tool_calls>\n<ifm|tool_call>warmth\n<ifm|arg_key>city</ifm|arg_key>\n"
    "<ifm|arg_value>Łódź</ifm|arg_value>\n"
    '<ifm|arg_key>unit</ifm|arg_key>\n<ifm|arg_value>{"c": true}</ifm|arg_value>\n</ifm|tool_call>\n</ifm|tool_calls>',
    "minimax_m3": minimax(
        '%<tool_call>\n%<invoke name="warmth">%<city>Łódź%</city>%<unit>{"c": true}%</unit>%</invoke>\n%</tool_call>'
    ),
    "dots": '<dots_function_call>\n<invoke name="warmth">\n<parameter name="city">Łódź</parameter>\n'
    '<parameter name="unit">{"c": true}</parameter>\n</invoke>\n</dots_function_call>',
    "step3": step(
        '<|tool_calls_begin|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="warmth">\n'
        '<steptml:parameter name="city">Łódź</steptml:parameter>\n<steptml:parameter name="unit">{"c": true}'
        "</steptml:parameter>\n</steptml:invoke><|tool_call_end|>\n<|tool_calls_end|>"
    ),
    "kimi_k3": xtml(
        '[tools][call tool="warmth" index="1"][argument key="city" type="string"]Łódź[/argument]'
        '[argument key="unit" type="object"]{"c": true}[/argument][/call][/tools]'
    ),
}
"""A call as a template shows it."""
