"""Chat templates in the manner of public families, written for these tests: they have those families' forms."""

from __future__ import annotations

import re

from calling_families import CALLING_FAMILIES
from newer_families import NEWER_FAMILIES


def deepseek(text: str) -> str:
    """DeepSeek's marks, which have wide bars, and blocks for blanks, from plain letters."""
    return re.sub(r"<\|(\w+)\|>", lambda mark: f"<｜{mark[1].replace('_', '▁')}｜>", text)


def dsml(text: str) -> str:
    """DeepSeek's markup language: `%` stands for the word that begins its tags."""
    return text.replace("%", "｜DSML｜")


FAMILIES: dict[str, str] = {
    "chatml": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +
    '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama 2": """{% set ns = namespace(system='') %}{% for m in messages %}
{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% continue %}{% endif %}
{% if m.role == 'user' %}{{ bos_token + '[INST] ' + ns.system + (m.content | trim) + ' [/INST]' }}{% set ns.system = '' %}
{% else %}{{ ' ' + (m.content | trim) + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama 3": """{{- bos_token }}{% for m in messages %}{{- '<|start_header_id|>' + m['role'] +
    '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "llama 3.1 with tools": """{{- bos_token }}{%- if date_string is not defined %}{%- set date_string =
    strftime_now('%d %b %Y') %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n' }}
{%- if tools is not none %}{{- 'Functions:\n' }}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{%- endfor
    %}{%- endif %}{{- '<|eot_id|>' }}
{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content if
    m.content is string else m.content | tojson) + '<|eot_id|>' }}
{%- elif m.tool_calls %}{%- if m.tool_calls | length != 1 %}{{- raise_exception('one tool call at once') }}{%- endif %}
{%- set f = m.tool_calls[0].function %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + f.name +
    '", "parameters": ' }}{{- f.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{%- endif
    %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "mistral": """{{ bos_token }}{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{%- if tools is not none %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif %}
{%- for m in rest %}{%- if m.role == 'user' %}[INST]{% if loop.last and messages[0].role == 'system'
    %}{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]
{%- elif m.tool_calls is defined and m.tool_calls is not none %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ c.function |
    tojson }}{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}
{%- elif m.role == 'tool' %}[TOOL_RESULTS]{"content": {{ m.content | tojson }}}[/TOOL_RESULTS]{%- else %}{{ ' ' +
    m.content + eos_token }}{%- endif %}{%- endfor %}""",
    "hermes": """{%- macro line(role, text) %}{{ '<|im_start|>' + role + '\n' + text + '<|im_end|>\n' }}{%- endmacro %}
{%- if tools is iterable and tools | length > 0 %}{{- line('system', 'Functions within <tools></tools>:\n<tools>' +
    (tools | map('tojson') | join('\n')) + '</tools>') }}{%- endif %}
{%- for m in messages %}{%- if m.tool_calls %}{{- '<|im_start|>assistant\n' }}{%- for c in m.tool_calls %}<tool_call>
{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{%- endfor %}{{- '<|im_end|>\n' }}{%- elif m.role == 'tool' %}{{- line('tool', '<tool_response>\n' +
    m.content + '\n</tool_response>') }}{%- else %}{{- line(m.role, m.content) }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    "qwen 2.5": """{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n'
    }}{%- endif %}
{%- for message in messages %}{%- if (message.role == "tool") %}{%- if (loop.index0 == 0) or (messages[loop.index0
    - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}{%- if loop.last or (messages[loop.index0
    + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' + message.role }}{%- if message.content %}{{- '\n' + message.content }}{%- endif
    %}{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}{%- set tool_call =
    tool_call.function %}{%- endif %}
{{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson
    }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    "qwen 3, which thinks": """{%- set ns = namespace(last=messages | length - 1) %}{%- for m in messages[::-1]
    %}{%- set index = (messages | length - 1) - loop.index0 %}
{%- if m.role == 'user' %}{%- set ns.last = index %}{%- break %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}{%- set text =
    m.content %}
{%- if '</think>' in text %}{%- set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n')
    %}{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{- '<think>\n' +
    thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- text + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is
    false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}""",
    "granite": """{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) +
    '<|end_of_text|>\n' }}{%- endif %}
{%- if documents %}{%- for d in documents %}{{- '<|start_of_role|>document {"title": "' + d['title'] +
    '"}<|end_of_role|>\n' + d['text'] + '<|end_of_text|>\n' }}{%- endfor %}{%- endif %}
{%- for m in messages %}{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n'
    }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson
    }}{%- endif %}{{- '<|end_of_role|>' }}{%- endif %}""",
    "gemma": """{{ bos_token }}{%- set lead = messages[0].content + '\n\n' if messages[0].role == 'system' else ''
    %}{%- set rest = messages[1:] if lead else messages %}
{%- for m in rest %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate')
    }}{%- endif %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (lead if loop.first
    else '') + m.content | trim + '<end_of_turn>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}""",
    "phi 3": """{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content']
    + '<|end|>\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% elif
    message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor
    %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "deepseek r1": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif
    %}{% set ns = namespace(is_first=false, system='') %}
{%- for m in messages %}{%- if m['role'] == 'system' %}{%- set ns.system = m['content'] %}{%- endif %}{%- endfor
    %}{{ bos_token }}{{ ns.system }}
{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{%- elif m['role'] == 'assistant'
    %}{% set text = m['content'] %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif
    %}{{ '<|Assistant|>' + text + '<|end_of_sentence|>' }}{%- endif %}{%- endfor %}{% if add_generation_prompt
    %}{{ '<|Assistant|><think>\n' }}{% endif %}""",
    "command r": """{{ bos_token }}{% if documents %}{{ '<|SYSTEM|># Documents' }}{% for d in documents %}{{ '\n<doc>'
    }}{% for k, v in d.items() %}{{ '\n' + k + ': ' + v }}{% endfor %}{{ '\n</doc>' }}{% endfor %}{{ '<|END|>' }}{% endif %}
{% for m in messages %}{{ '<|' ~ {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM', 'tool': 'SYSTEM'}[m.role]
    ~ '|>' ~ m.content.strip() ~ '<|END|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|CHATBOT|>' }}{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "vicuna": """{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user'
    %}{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if
    add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "alpaca": """{% for m in messages %}{{ {'system': '', 'user': '### Instruction:\n', 'assistant': '### Response:\n',
    'tool': '### Result:\n'}[m.role] + m.content + '\n\n' }}{% endfor %}{{ '### Response:\n' if add_generation_prompt }}""",
    "smollm 3, with marks of training": """{%- for message in messages %}{%- if message.role == 'assistant'
    %}{{- '<|im_start|>assistant\n' }}{% generation %}{{- message.content.lstrip('\n') + '<|im_end|>\n'
    }}{% endgeneration %}{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n'
    }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    "olmo": """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% if not loop.last
    %}{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n' + m['content'] + eos_token
    }}{% endif %}{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}{% if loop.last and
    add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}""",
    "gpt-oss": """{%- set effort = reasoning_effort | default('medium') %}{{- '<|start|>system<|message|>Reasoning: ' + effort
    + '\n# Channels: analysis, commentary, final.' }}{%- if tools %}{{- '\nFunctions are called in commentary.' }}{%- endif
    %}{{- '<|end|>' }}
{%- set first = messages[0].content if messages[0].role in ('system', 'developer') else '' %}{%- if first or tools
    %}{{- '<|start|>developer<|message|>' }}{%- if first %}{{- '# Instructions\n\n' + first + '\n\n' }}{%- endif %}{%- if tools
    %}{{- '# Tools\n\nnamespace functions {\n\n' }}{%- for t in tools %}{{- 'type ' + t.function.name + ' = (_: ' +
    (t.function.parameters | tojson) + ') => any;\n\n' }}{%- endfor %}{{- '}' }}{%- endif %}{{- '<|end|>' }}{%- endif %}
{%- set ns = namespace(called=none) %}{%- for m in messages %}{%- if m.role == 'assistant' and 'tool_calls' in m %}
{%- if '<|channel|>' in m.content | default('') %}{{- raise_exception('marks do not belong into content') }}{%- endif %}
{%- if m.content and m.thinking %}{{- raise_exception('content and thinking cannot both stand before a call') }}
{%- elif m.content or m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>'
    }}{%- endif %}{%- set ns.called = m.tool_calls[0].function.name %}{{- '<|start|>assistant to=functions.' + ns.called +
    '<|channel|>commentary json<|message|>' + (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}
{%- elif m.role == 'assistant' %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last and
    not add_generation_prompt else '<|end|>') }}
{%- elif m.role == 'tool' %}{%- if ns.called is none %}{{- raise_exception('no call before') }}{%- endif
    %}{{- '<|start|>functions.' + ns.called + ' to=assistant<|channel|>commentary<|message|>' + (m.content | tojson) + '<|end|>'
    }}
{%- elif m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}""",
    "deepseek v3 with tools": deepseek("""{{ bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}{{ m['content'] }}
{%- endif %}{%- endfor %}{%- if tools %}{{ '\n\nCall one of these with <|tool_calls_begin|><|tool_call_begin|>function' +
    '<|tool_sep|>NAME\n```json\n{}\n```<|tool_call_end|><|tool_calls_end|>\n' }}{%- for t in tools %}{{ t | tojson + '\n' }}
{%- endfor %}{%- endif %}
{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] + '<|Assistant|>' }}
{%- elif m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] is not none %}{%- if m['content'] is not none
    %}{{ m['content'] }}{%- endif %}{{ '<|tool_calls_begin|>' }}{%- for c in m['tool_calls'] %}{{ ('' if loop.first else '\n') +
    '<|tool_call_begin|>' + c['type'] + '<|tool_sep|>' + c['function']['name'] + '\n```json\n' }}{{ c['function']['arguments'] |
    tojson }}{{ '\n```<|tool_call_end|>' }}{%- endfor %}{{ '<|tool_calls_end|><|end_of_sentence|>' }}
{%- elif m['role'] == 'assistant' %}{{ m['content'] + '<|end_of_sentence|>' }}{%- elif m['role'] == 'tool'
    %}{{ '<|tool_output_begin|>' + m['content'] + '<|tool_output_end|>' }}{%- endif %}{%- endfor %}"""),
    "deepseek v3.1 with tools": deepseek("""{%- if thinking is not defined %}{%- set thinking = false %}{%- endif %}
{{- bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}{{ m['content'] }}{%- endif %}{%- endfor %}{%- if tools
    %}{{ '\n\n## Tools\n' + (tools | tojson) +
    '\n<|tool_calls_begin|><|tool_call_begin|>NAME<|tool_sep|>ARGUMENTS<|tool_call_end|><|tool_calls_end|>'
    }}{%- endif %}
{%- set ns = namespace(asked=false) %}{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.asked = true
    %}{{ '<|User|>' + m['content'] }}{%- elif m['role'] == 'assistant' %}{%- if ns.asked %}{{ '<|Assistant|></think>' }}
{%- endif %}{%- set ns.asked = false %}{%- if m['tool_calls'] is defined %}{%- if m['content'] is none %}{{ '<|tool_calls_begin|>'
    }}{%- else %}{{ m['content'] + '<|tool_calls_begin|>' }}{%- endif %}{%- for c in m['tool_calls'] %}{{ '<|tool_call_begin|>' +
    c['function']['name'] + '<|tool_sep|>' + c['function']['arguments'] + '<|tool_call_end|>' }}{%- endfor
    %}{{ '<|tool_calls_end|><|end_of_sentence|>' }}{%- else %}{{ m['content'].split('</think>')[-1] + '<|end_of_sentence|>' }}
{%- endif %}{%- elif m['role'] == 'tool' %}{{ '<|tool_output_begin|>' + m['content'] + '<|tool_output_end|>' }}{%- endif
    %}{%- endfor %}{%- if add_generation_prompt and ns.asked %}{{ '<|Assistant|>' + ('<think>' if thinking else '</think>') }}
{%- endif %}"""),
    "exaone, with dictionaries": """{%- set names = dict(system='[|system|]', user='[|user|]',
    assistant='[|assistant|]', tool='[|tool|]') %}{%- for m in messages %}{{- names[m.role] + m.content }}{%- if m.role
    != 'user' %}{{- '[|endofturn|]' }}{%- endif %}{{- '\n' }}{%- endfor %}{%- if add_generation_prompt
    %}{{- '[|assistant|]' }}{%- endif %}""",
    **CALLING_FAMILIES,
    **NEWER_FAMILIES,
}
