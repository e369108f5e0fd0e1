"""More chat templates in the manner of public families, written for these tests: each has a form of calls of its own.

Where a family's own template can be read stands before each.
"""

from __future__ import annotations

CALLING_FAMILIES: dict[str, str] = {
    # llama.cpp, models/templates/DeepSeek-V3.2.jinja
    "deepseek v3.2 with tools": """{%- set w = '｜DSML｜' %}{{- bos_token }}{%- if messages[0].role == 'system' %}{{-
    messages[0].content }}
{%- endif %}{%- if tools %}{{- '\n\n## Tools\n<' + w + 'function_calls>\n...\n</' + w + 'function_calls>\n' }}{%- for t in tools
    %}{{- t | tojson + '\n' }}{%- endfor %}{%- endif %}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<｜User｜>' +
    m.content
    + '<｜Assistant｜>' + ('<think>' if enable_thinking | default(true) and loop.last else '</think>') }}
{%- elif m.role == 'tool' %}{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '\n\n<function_results>' }}{%- endif
    %}{{- '\n<result>' + m.content + '</result>' }}{%- if loop.last or messages[loop.index].role != 'tool'
    %}{{- '\n</function_results>\n\n' + ('<think>' if enable_thinking | default(true) else '</think>') }}{%- endif %}
{%- elif m.role == 'assistant' %}{%- if m.reasoning_content %}{{- m.reasoning_content + '</think>' }}{%- endif
    %}{{- m.get('content', '') }}{%- if m.tool_calls %}{{- '\n\n<' + w + 'function_calls>' }}{%- for c in m.tool_calls
    %}{{- '\n<' + w + 'invoke name="' + c.function.name + '">\n' }}{%- if c.function.arguments is mapping %}{%- for k, v in
    c.function.arguments.items() %}{{- '<' + w + 'parameter name="' + k + '" string="' + ('true' if v is string else 'false') +
    '">' +
    (v if v is string else v | tojson) + '</' + w + 'parameter>\n' }}{%- endfor %}{%- endif %}{{- '</' + w + 'invoke>' }}
{%- endfor %}{{- '\n</' + w + 'function_calls>' }}{%- endif %}{{- '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}""",
    # llama.cpp, models/templates/Kimi-K2-Thinking.jinja
    "kimi k2 with tools": """{%- if tools %}{{- '<|im_system|>tool_declare<|im_middle|>' + tools | tojson + '<|im_end|>' }}{%-
    endif %}
{%- for m in messages %}{%- set mark = {'user': 'user', 'assistant': 'assistant'}.get(m.role, 'system') %}{{- '<|im_' + mark +
    '|>' +
    (m.name or m.role) + '<|im_middle|>' }}{%- if m.role == 'assistant' %}{{- '<think>' + (m.reasoning_content or '') + '</think>'
    }}{%- endif %}{%- if m.role == 'tool' %}{{- '## Return of ' + m.tool_call_id + '\n' }}{%- endif %}{{- m.content or '' }}
{%- if m.tool_calls %}{{- '<|tool_calls_section_begin|>' }}{%- for c in m.tool_calls %}{{- '<|tool_call_begin|>' + c.id +
    '<|tool_call_argument_begin|>' }}{%- if c.function.arguments is string %}{{- c.function.arguments }}{%- else
    %}{{- c.function.arguments | tojson }}{%- endif %}{{- '<|tool_call_end|>' }}{%- endfor %}{{- '<|tool_calls_section_end|>' }}
{%- endif %}{{- '<|im_end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_assistant|>assistant<|im_middle|>' }}
{%- endif %}""",
    # llama.cpp, models/templates/NVIDIA-Nemotron-Nano-v2.jinja
    "nemotron nano 2 with tools": """{{- '<SPECIAL_10>System\n' + (messages[0].content if messages[0].role == 'system' else '') }}
{%- if tools %}{{- '\n<AVAILABLE_TOOLS>[' }}{%- for t in tools %}{{- t.function | tojson }}{{- ', ' if not loop.last }}{%- endfor
    %}{{- ']</AVAILABLE_TOOLS>\nCalls: <TOOLCALL>[{"name": "NAME", "arguments": {}}]</TOOLCALL>\n' }}{%- endif %}{{- '\n\n' }}
{%- for m in messages %}{%- if m.role == 'user' %}{{- '<SPECIAL_11>User\n' + m.content + '\n' }}{%- elif m.role == 'tool'
    %}{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<SPECIAL_11>User\n<TOOL_RESPONSE>[' }}{%- endif %}{{- m.content }}
{%- if loop.last or messages[loop.index].role != 'tool' %}{{- ']</TOOL_RESPONSE>\n' }}{%- else %}{{- ', ' }}{%- endif %}
{%- elif m.role == 'assistant' %}{{- '<SPECIAL_11>Assistant\n' + m.content.split('</think>')[-1] }}{%- if m.tool_calls
    %}{{- '<TOOLCALL>[' }}{%- for c in m.tool_calls %}{{- '{"name": "' + c.function.name + '", "arguments": ' }}
{%- if c.function.arguments is string %}{{- c.function.arguments }}{%- else %}{{- c.function.arguments | tojson }}{%- endif
    %}{{- '}' + (', ' if not loop.last else '') }}{%- endfor %}{{- ']</TOOLCALL>' }}{%- endif %}{{- '\n<SPECIAL_12>\n' }}{%-
    endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<SPECIAL_11>Assistant\n<think>\n' }}{%- endif %}""",
    # NVIDIA's model card of Nemotron 3 Nano: calls are Qwen 3 Coder's
    "nemotron 3 nano with tools": """{%- if tools %}{{- '<|im_start|>system\n# Tools\n' + tools | tojson +
    '\n<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call><|im_end|>\n' }}{%- endif %}
{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content +
    '\n</tool_response><|im_end|>\n'
    }}{%- else %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{{- '<think>' + (m.reasoning_content or '') +
    '</think>' }}{%- endif %}{{- m.content or '' }}{%- for c in m.tool_calls or [] %}{{- '<tool_call>\n<function=' +
    c.function.name +
    '>\n' }}{%- for k, v in c.function.arguments | items %}{{- '<parameter=' + k + '>\n' + (v if v is string else v | tojson) +
    '\n</parameter>\n' }}{%- endfor %}{{- '</function>\n</tool_call>\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%-
    endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>' + ('\n' if enable_thinking | default(true) else '</think>')
    }}{%- endif %}""",
    # llama.cpp, models/templates/GLM-4.6.jinja
    "glm 4.6 with tools": """[gMASK]<sop>{%- if tools %}{{- '<|system|>\n# Tools\n' + tools | tojson }}
<tool_call>NAME
<arg_key>KEY</arg_key>
<arg_value>VALUE</arg_value>
</tool_call>{%- endif %}
{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|assistant|>\n<think>' + (m.reasoning_content or '') + '</think>\n' +
    (m.content or '') }}{%- for c in m.tool_calls or [] %}{{- '\n<tool_call>' + c.function.name + '\n' }}{%- for k, v in
    c.function.arguments.items() %}{{- '<arg_key>' + k + '</arg_key>\n<arg_value>' + (v if v is string else v | tojson) +
    '</arg_value>\n' }}{%- endfor %}{{- '</tool_call>' }}{%- endfor %}{%- elif m.role == 'tool' %}{%- if messages[loop.index0 -
    1].role != 'tool' %}{{- '<|observation|>' }}{%- endif %}{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}{%-
    else
    %}{{- '<|' + m.role + '|>\n' + m.content }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' + (''
    if enable_thinking | default(true) else '\n<think></think>') }}{%- endif %}""",
    # llama.cpp, models/templates/unsloth-MiniMax-M2.jinja
    "minimax m2 with tools": """{%- set begin, end = '<minimax:tool_call>', '</minimax:tool_call>' %}{{-
    ']~!b[]~b]system\nYou are useful.' }}
{%- if tools %}{{- '\n# Tools\n' }}{%- for t in tools %}{{- '<tool>' + t.function | tojson + '</tool>\n' }}{%- endfor %}{{-
    begin +
    '\n<invoke name="NAME">\n<parameter name="KEY">VALUE</parameter>\n</invoke>\n' + end }}{%- endif %}{{- '[e~[\n' }}
{%- for m in messages %}{%- if m.role == 'assistant' %}{{- ']~b]ai\n' }}{%- if m.reasoning_content %}{{- '<think>\n' +
    m.reasoning_content + '\n</think>\n\n' }}{%- endif %}{{- m.content or '' }}{%- if m.tool_calls %}{{- '\n' + begin + '\n' }}
{%- for c in m.tool_calls %}{{- '<invoke name="' + c.function.name + '">\n' }}{%- if c.function.arguments is mapping %}{%- for
    k, v
    in c.function.arguments | items %}{{- '<parameter name="' + k + '">' + (v if v is string else v | tojson) + '</parameter>\n'
    }}
{%- endfor %}{%- endif %}{{- '</invoke>\n' }}{%- endfor %}{{- end }}{%- endif %}{{- '[e~[\n' }}{%- elif m.role == 'tool'
    %}{{- ']~b]tool\n<response>' + m.content + '</response>[e~[\n' }}{%- elif m.role == 'user' %}{{- ']~b]user\n' + m.content +
    '[e~[\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- ']~b]ai\n<think>\n' }}{%- endif %}""",
    # llama.cpp, models/templates/CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja
    "command r7b with tools": """{{- bos_token }}{%- for m in messages if m.role == 'system' %}{{- '<|SYSTEM_TOKEN|>' +
    m.content }}
{%- endfor %}{%- if tools %}{{- '<|START_THINKING|>...<|END_THINKING|><|START_ACTION|>[...]<|END_ACTION|>' + tools | tojson }}
{%- endif %}
{%- set ns = namespace(place=0) %}{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|CHATBOT_TOKEN|>' }}{%- if
    m.tool_calls
    %}{{- '<|START_THINKING|>' + (m.reasoning_content or '') + '<|END_THINKING|><|START_ACTION|>[' }}{%- for c in m.tool_calls
    %}{{- '\n    {"tool_call_id": "' ~ ns.place ~ '", "tool_name": "' + c.function.name + '", "parameters": ' +
    c.function.arguments |
    tojson + '}' + (',' if not loop.last else '') }}{%- set ns.place = ns.place + 1 %}{%- endfor %}{{- '\n]<|END_ACTION|>' }}{%-
    else
    %}{{- '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{%- endif %}{%- elif m.role == 'tool'
    %}{{- '<|START_TOOL_RESULT|>' + m.content + '<|END_TOOL_RESULT|>' }}{%- elif m.role == 'user' %}{{- '<|USER_TOKEN|>' +
    m.content }}
{%- endif %}{{- '<|END_OF_TURN_TOKEN|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|CHATBOT_TOKEN|>' }}{%- endif %}""",
    # llama.cpp, models/templates/LFM2.5-8B-A1B.jinja
    "lfm2 with tools": """{{- bos_token }}{%- if tools %}{{- '<|im_start|>system\nList of tools: ' + tools | tojson +
    '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}{%- if m.tool_calls %}{%- set ns =
    namespace(calls=[])
    %}{%- for c in m.tool_calls %}{%- set given = namespace(parts=[]) %}{%- for k, v in c.function.arguments.items() %}{%- set
    given.parts = given.parts + [k + '=' + ("'" + v + "'" if v is string else v | string)] %}{%- endfor %}{%- set ns.calls =
    ns.calls +
    [c.function.name + '(' + given.parts | join(', ') + ')'] %}{%- endfor %}{{- '<|tool_call_start|>[' + ns.calls | join(', ') +
    ']<|tool_call_end|>' }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt
    %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    # llama.cpp, models/templates/gemma4.jinja
    "gemma 4 with tools": """{%- macro value(v) %}{%- if v is string %}{{- '<|"|>' + v + '<|"|>' }}{%- elif v is boolean %}{{-
    'true' if v
    else 'false' }}{%- elif v is mapping %}{{- '{' }}{%- for k, w in v | dictsort %}{{- k + ':' + value(w) + (',' if not
    loop.last else
    '') }}{%- endfor %}{{- '}' }}{%- elif v is sequence %}{{- '[' }}{%- for w in v %}{{- value(w) + (',' if not loop.last else
    '') }}
{%- endfor %}{{- ']' }}{%- else %}{{- v }}{%- endif %}{%- endmacro %}{{- bos_token }}{%- if tools %}{{- '<|turn>system\n' }}{%-
    for t in
    tools %}{{- '<|tool>declaration:' + t.function.name + '<tool|>' }}{%- endfor %}{{- '<turn|>\n' }}{%- endif %}{%- for m in
    messages
    %}{{- '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{%- for c in m.tool_calls or [] %}{{-
    '<|tool_call>call:'
    + c.function.name + '{' }}{%- if c.function.arguments is mapping %}{%- for k, v in c.function.arguments | dictsort %}{{- k +
    ':' +
    value(v) + (',' if not loop.last else '') }}{%- endfor %}{%- else %}{{- c.function.arguments }}{%- endif %}{{-
    '}<tool_call|>' }}
{%- endfor %}{{- (m.content or '') | trim + '<turn|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|turn>model\n' }}{%-
    if not
    enable_thinking | default(false) %}{{- '<|channel>thought\n<channel|>' }}{%- endif %}{%- endif %}""",
}
