"""Chat templates in the manner of newer public families, written for these tests; where a family's own can be read stands before.

Some show no mark whole: they are put together from parts.
"""

from __future__ import annotations

NEWER_FAMILIES: dict[str, str] = {
    # llama.cpp, models/templates/Kimi-K3.jinja
    "kimi k3 with tools": """{%- macro tag(word, given=[]) %}{{- '<|open|>' + word }}{%- for k, v in given %}{{- ' ' + k + '="' +
    (v | string | replace('&', '&amp;') | replace('"', '&quot;')) + '"' }}{%- endfor %}{{- '<|sep|>' }}{%- endmacro %}
{%- macro end(word) %}{{- '<|close|>' + word + '<|sep|>' }}{%- endmacro %}
{%- macro kind(v) %}{{- 'boolean' if v is boolean else 'null' if v is none else 'number' if v is number else 'string'
    if v is string
    else 'object' if v is mapping else 'array' }}{%- endmacro %}
{%- set thinks = thinking | default(true) %}{%- if tools %}{{- tag('message', [('role', 'system'), ('type', 'tool-declare')]) +
    (tools | tojson) + end('message') + '<|end_of_msg|>' }}{%- endif %}
{%- set ns = namespace(calls=[], place=0) %}{%- for m in messages %}{%- if m.role == 'tool' %}{%- set ns.place = ns.place + 1 %}
{%- set called = ns.calls | selectattr('id', 'equalto', m.tool_call_id) | first %}{{- tag('message', [('role', 'tool'), ('tool',
    called.function.name), ('index', ns.place)]) + m.content + end('message') + '<|end_of_msg|>' }}
{%- elif m.role == 'assistant' %}{%- set ns.calls = m.tool_calls or [] %}{%- set ns.place = 0 %}{{- tag('message', [('role',
    'assistant')]) }}{%- if thinks %}{{- tag('think') + (m.reasoning_content or '') + end('think') }}{%- endif
    %}{{- tag('response') + (m.content or '') + end('response') }}{%- if m.tool_calls
    %}{{- tag('tools') }}{%- for c in m.tool_calls
    %}{{- tag('call', [('tool', c.function.name), ('index', loop.index)]) }}{%- if c.function.arguments is mapping
    %}{%- for k, v in
    c.function.arguments.items() %}{{- tag('argument', [('key', k), ('type', kind(v))]) + (v if v is string else v | tojson) +
    end('argument') }}{%- endfor %}{%- else %}{{- tag('json', [('type', 'object')]) + c.function.arguments + end('json') }}
{%- endif %}{{- end('call') }}{%- endfor %}{{- end('tools') }}{%- endif %}{{- end('message') + '<|end_of_msg|>' }}
{%- else %}{{- tag('message', [('role', m.role)]) + m.content + end('message') + '<|end_of_msg|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- tag('message', [('role', 'assistant')]) + tag('think' if thinks else 'response') }}
{%- endif %}""",
    # ms-swift, swift/agent_template (MiniMax-M3's macro `to_xml`, in Python)
    "minimax m3 with tools": """{%- set ns_token = ']<]minimax[>[' %}{%- macro xml(v) %}{%- if v is mapping %}{%- for k, w in
    v.items() if w is not none %}{{- ns_token + '<' + k + '>' + xml(w) + ns_token + '</' + k + '>' }}{%- endfor %}{%- elif v is
    boolean %}{{- v | tojson }}{%- elif v is iterable and v is not string %}{%- for w in v %}{{- ns_token + '<item>' + xml(w) +
    ns_token + '</item>' }}{%- endfor %}{%- else %}{{- v }}{%- endif %}{%- endmacro %}
{{- ']~!b[]~b]system\nYou are useful.' }}{%- if tools %}{%- for t in tools %}{{- '\n<tool>' + t.function | tojson + '</tool>' }}
{%- endfor %}{{- '\n' + ns_token + '<tool_call>\n' + ns_token + '<invoke name="NAME">...' }}{%- endif %}{{- '[e~[\n' }}
{%- for m in messages %}{%- if m.role == 'assistant' %}{{- ']~b]ai\n' }}{%- if m.reasoning_content %}{{- '<mm:think>' +
    m.reasoning_content + '</mm:think>' }}{%- endif %}{{- m.content or '' }}{%- if m.tool_calls %}{{- '\n' + ns_token +
    '<tool_call>\n' }}{%- for c in m.tool_calls %}{{- ns_token + '<invoke name="' + c.function.name + '">' }}
{%- if c.function.arguments is mapping %}{{- xml(c.function.arguments) }}{%- else %}{{- c.function.arguments }}{%- endif
    %}{{- ns_token + '</invoke>\n' }}{%- endfor %}{{- ns_token + '</tool_call>' }}{%- endif %}{{- '[e~[\n' }}
{%- elif m.role == 'tool' %}{{- ']~b]tool\n<response>' + m.content + '</response>[e~[\n' }}{%- elif m.role == 'user' %}{{-
    ']~b]user\n' + m.content + '[e~[\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- ']~b]ai\n<mm:think>' }}
{%- endif %}""",
    # llama.cpp, models/templates/GigaChat3-10B-A1.8B.jinja
    "gigachat 3 with tools": """{%- set sep = namespace(role='<|role_sep|>\n', message='<|message_sep|>\n\n') %}{{- bos_token }}
{%- macro said(role, text) %}{{- role + sep.role + (text or '') + sep.message }}{%- endmacro %}
{%- if tools %}{{- said('function descriptions', tools | tojson) }}{%- endif %}{%- for m in messages %}{%-
    if m.role == 'tool' %}{{-
    said('function result', m.content) }}{%- elif m.role == 'assistant' %}{{- said('assistant', m.content) }}{%- if m.tool_calls
    %}{%- set f = m.tool_calls[0].function
    %}{{- said('function call', '{"name": "' ~ f.name ~ '", "arguments": ' ~ (f.arguments if
    f.arguments is string else f.arguments | tojson) ~ '}') }}{%- endif %}{%- else %}{{- said(m.role, m.content) }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- 'assistant' + sep.role }}{%- endif %}""",
    # llama.cpp, models/templates/GigaChat3.5.jinja
    "gigachat 3.5 with tools": """{%- set sep = namespace(role='<|role_sep|>\n', message='<|message_sep|>\n\n') %}{{- bos_token }}
{%- if tools %}{{- 'function descriptions' + sep.role + (tools | tojson) + sep.message }}{%- endif %}{%- for m in messages
    %}{%- if m.role == 'assistant' %}{{- 'assistant' + sep.role }}{%- if m.reasoning_content %}{{- '<think>' +
    m.reasoning_content +
    '</think>\n\n' }}{%- endif %}{{- m.content or '' }}{%- if m.tool_calls %}{{- '\n\n' if m.content }}{{-
    '<｜GCML｜tool_calls>\n' }}{%- for c in m.tool_calls %}{%- set given = c.function.arguments %}{%- if given is string
    %}{{- raise_exception('arguments must be an object') }}{%- endif %}{{- '<｜GCML｜invoke name="' + c.function.name + '">\n' }}
{%- for k, v in given.items() %}{{- '<｜GCML｜parameter name="' + k + '" string="' + ('true' if v is string else 'false') + '">' +
    (v if v is string else v | tojson) + '</｜GCML｜parameter>\n' }}{%- endfor %}{{- '</｜GCML｜invoke>\n' }}{%- endfor %}{{-
    '</｜GCML｜tool_calls>' }}{%- endif %}{{- sep.message }}{%- else %}{{- ('function result' if m.role == 'tool' else m.role) +
    sep.role + m.content + sep.message }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- 'assistant' + sep.role }}{%-
    if reasoning %}{{- '<think>' }}{%- endif %}{%- endif %}""",
    # vLLM, tests/tool_parsers/test_step3_tool_parser.py, and SGLang's step3_detector: the text of a call
    "step 3 with tools": """{{- bos_token }}{%- if tools %}{{- '<|BOT|>system\n' + (tools | tojson) +
    '\n<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="NAME">...' +
    '<|EOT|>' }}{%- endif %}
{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|BOT|>tool\n' + m.content + '<|EOT|>' }}{%- else %}{{- '<|BOT|>' +
    m.role +
    '\n' + (m.content or '') }}{%- if m.tool_calls %}{{- '<｜tool_calls_begin｜>\n' }}{%- for c in m.tool_calls %}{{-
    '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="' + c.function.name +
    '">\n' }}{%- if c.function.arguments is
    mapping %}{%- for k, v in c.function.arguments | items %}{{- '<steptml:parameter name="' + k + '">' +
    (v if v is string else v |
    tojson) + '</steptml:parameter>\n' }}{%- endfor %}{%- else %}{{- c.function.arguments }}{%- endif %}{{-
    '</steptml:invoke><｜tool_call_end｜>\n' }}{%- endfor %}{{- '<｜tool_calls_end｜>' }}{%- endif %}{{- '<|EOT|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|BOT|>assistant\n<think>\n' }}{%- endif %}{#- </think> #}""",
    # vLLM, examples/tool_chat_template_apertus.jinja
    "apertus with tools": """{{- bos_token }}{%- set inner, outer = '<|inner_prefix|>', '<|inner_suffix|>' %}{%- set calls, over =
    '<|tools_prefix|>', '<|tools_suffix|>' %}{{- '<|developer_start|>Tool Capabilities:' }}{%- for t in tools or []
    %}{{- '\ntype ' +
    t.function.name + ' = any;' }}{%- endfor %}{{- '<|developer_end|>' }}{%- set ns = namespace(open=false, results=false) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- if ns.results %}{{- ']' }}{%- set ns.results = false %}{%- endif %}
{%- if ns.open %}{{- '<|assistant_end|>' }}{%- set ns.open = false %}{%- endif %}{{- '<|user_start|>' + m.content +
    '<|user_end|>' }}{%- elif m.role == 'assistant' %}{%- if not ns.open %}{{- '<|assistant_start|>' }}{%- set ns.open = true %}
{%- endif %}{%- if m.content is string %}{{- m.content }}{%- else %}{{- raise_exception('no content') }}{%- endif %}
{%- if m.tool_calls %}{{- calls + '[' }}{%- for c in m.tool_calls %}{{- '{"' + c.function.name + '": ' + c.function.arguments +
    '}' +
    (', ' if not loop.last else '') }}{%- endfor %}{{- ']' + over }}{%- endif %}{%- elif m.role == 'tool' %}{{- ', ' if ns.results
    else '[' }}{%- set ns.results = true %}{{- m.content }}{%- endif %}{%- endfor %}{%- if add_generation_prompt and not ns.open
    %}{{- '<|assistant_start|>' }}{%- endif %}""",
}
