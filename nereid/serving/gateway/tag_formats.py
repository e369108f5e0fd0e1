"""The forms of calls in which a function and its parameters stand in tags: a part of the registry."""

from __future__ import annotations

from dataclasses import replace

from nereid.serving.gateway.call_forms import Shape, ToolFormat
from nereid.serving.gateway.tags import (
    EQUALS,
    NAMESPACED,
    PAIRS,
    PARAMS,
    SOLAR,
    STEP3,
    TIGHT_PAIRS,
    XTML,
    named_tags,
    pairs,
)

QWEN3_CODER = ToolFormat(
    name="qwen3_coder",
    shape=Shape.TAGS,
    begin="<tool_call>",
    end="</tool_call>",
    between="\n",
    opening=EQUALS.function,
    pad="\n",
    tags=EQUALS,
)
SEED_OSS = replace(QWEN3_CODER, name="seed_oss", begin="<seed:tool_call>", end="</seed:tool_call>")
GLM45 = ToolFormat(name="glm45", shape=Shape.TAGS, begin="<tool_call>", end="</tool_call>", between="\n", tags=PAIRS)
GLM47 = replace(GLM45, name="glm47", between="", tags=TIGHT_PAIRS)
_LONGCAT = pairs("longcat_")
LONGCAT_TAGS = replace(GLM45, name="longcat_tags", begin="<longcat_tool_call>", end="</longcat_tool_call>", tags=_LONGCAT)
SOLAR_OPEN2 = replace(GLM45, name="solar_open2", begin="<|tool_call:start|>", end="<|tool_call:end|>", tags=SOLAR)
MINICPM5 = replace(GLM45, name="minicpm5", begin=PARAMS.function, end="", opening=PARAMS.function, tags=PARAMS)
_HY3, _HY4 = pairs(section=True, separated=True), pairs(behind=":opensource", section=True, tight=True)
HY3 = replace(
    GLM45,
    name="hy3",
    begin="<tool_calls>",
    end="</tool_calls>",
    other_ends=(_HY3.closing,),
    opening=_HY3.function,
    pad="\n",
    tags=_HY3,
    section=True,
)
HY4 = replace(
    HY3,
    name="hy4",
    begin="<tool_calls:opensource>",
    end="</tool_calls:opensource>",
    other_ends=(_HY4.closing,),
    between="",
    opening=_HY4.function,
    pad="",
    tags=_HY4,
)
_IFM = pairs("ifm|", section=True)
K2_HORIZON = replace(
    HY3,
    name="k2_horizon",
    begin="<ifm|tool_calls>",
    end="</ifm|tool_calls>",
    other_ends=(_IFM.closing,),
    opening=_IFM.function,
    tags=_IFM,
)
_PLAIN, _DSML = named_tags("", says_text=False), named_tags("｜DSML｜", says_text=True)
_DSML = replace(_DSML, others=(named_tags("", says_text=True),))
MINIMAX_M2 = ToolFormat(
    name="minimax_m2",
    shape=Shape.TAGS,
    begin="<minimax:tool_call>",
    end="</minimax:tool_call>",
    between="\n",
    opening=_PLAIN.function,
    pad="\n",
    tags=_PLAIN,
    section=True,
)
DOTS = replace(MINIMAX_M2, name="dots", begin="<dots_function_call>", end="</dots_function_call>")
MINIMAX_M3 = replace(
    MINIMAX_M2,
    name="minimax_m3",
    begin=f"{NAMESPACED.nested}<tool_call>",
    end=f"{NAMESPACED.nested}</tool_call>",
    others=("<tool_call>",),
    other_ends=("</tool_call>",),
    opening=NAMESPACED.function,
    tags=NAMESPACED,
    silent=(NAMESPACED.nested,),
)
STEP_3 = replace(
    MINIMAX_M2,
    name="step3",
    begin="<｜tool_calls_begin｜>",
    end="<｜tool_calls_end｜>",
    other_ends=("<｜tool_call_end｜>", "<｜tool_sep｜>"),
    opening=STEP3.before[0],
    closing="<｜tool_call_end｜>",
    tags=STEP3,
)
KIMI_K3 = replace(
    MINIMAX_M2,
    name="kimi_k3",
    begin="<|open|>tools<|sep|>",
    end="<|close|>tools<|sep|>",
    between="",
    opening=XTML.function,
    pad="",
    tags=XTML,
    silent=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    before=("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
)
DEEPSEEK_V32 = replace(
    MINIMAX_M2,
    name="deepseek_v32",
    begin="<｜DSML｜function_calls>",
    end="</｜DSML｜function_calls>",
    others=("<｜DSML｜tool_calls>",),
    other_ends=("</｜DSML｜tool_calls>",),
    opening=_DSML.function,
    tags=_DSML,
)
DEEPSEEK_V4 = replace(
    DEEPSEEK_V32,
    name="deepseek_v4",
    begin="<｜DSML｜tool_calls>",
    end="</｜DSML｜tool_calls>",
    others=("<｜DSML｜function_calls>",),
    other_ends=("</｜DSML｜function_calls>",),
)
_GCML = named_tags("｜GCML｜", says_text=True)
GIGACHAT35 = replace(
    DEEPSEEK_V4,
    name="gigachat35",
    begin="<｜GCML｜tool_calls>",
    end="</｜GCML｜tool_calls>",
    others=(),
    other_ends=(),
    opening=_GCML.function,
    tags=_GCML,
    silent=("<|message_sep|>",),
)
