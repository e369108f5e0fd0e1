"""The forms in which chat templates have a model write its calls of tools: a registry, and which one a template is for.

Forms are those of the families' own templates: Hermes and Qwen 2.5 (NousResearch, "Hermes Function Calling Standard"), Llama 3.1
(Meta, "JSON based tool calling"), Mistral (mistral-common's tokenizers v3 and v11), Granite 3 (IBM), Qwen 3 Coder, Seed-OSS
(ByteDance), gpt-oss (OpenAI, "Harmony response format"), DeepSeek (V3 and R1, whose arguments stand in a fence, V3.1, where they
do not, V3.2 and V4, "DSML"), Kimi K2 (Moonshot AI, "Tool calling guidance"), Nemotron (NVIDIA), GLM 4.5 (Z.ai), MiniMax M2,
Command R7B and A (Cohere), Phi 4 mini (Microsoft), LFM2 (Liquid AI), Olmo 3 (Ai2), Llama 3.2 and 4 (Meta, "zero-shot function
calling"), Gemma 4 and FunctionGemma (Google), Hunyuan A13B, Hy3 and Hy4 (Tencent), Jamba (AI21), LongCat Flash (Meituan),
InternLM 2.5, Step 3 (StepFun, "StepTML"), Apertus (Swiss AI), GigaChat 3, 3.1 and 3.5 (Sber), MiniMax M3, Kimi K3 (Moonshot AI,
"XTML"), Solar Open 2 (Upstage), MiniCPM 5 (OpenBMB), K2 Horizon (IFM), dots (RedNote), Granite 20B (IBM) and xLAM 2 (Salesforce).
"""

from __future__ import annotations

from dataclasses import replace

from nereid.serving.gateway.call_forms import NINE, NUMBERED, Shape, ToolFormat, numbered_id, short_id
from nereid.serving.gateway.tag_formats import (
    DEEPSEEK_V4,
    DEEPSEEK_V32,
    DOTS,
    GIGACHAT35,
    GLM45,
    GLM47,
    HY3,
    HY4,
    K2_HORIZON,
    KIMI_K3,
    LONGCAT_TAGS,
    MINICPM5,
    MINIMAX_M2,
    MINIMAX_M3,
    QWEN3_CODER,
    SEED_OSS,
    SOLAR_OPEN2,
    STEP_3,
)

HERMES = ToolFormat(name="hermes", shape=Shape.OBJECT, begin="<tool_call>", end="</tool_call>", between="\n", pad="\n")
LONGCAT = replace(HERMES, name="longcat", begin="<longcat_tool_call>", end="</longcat_tool_call>")
INTERNLM = ToolFormat(
    name="internlm",
    shape=Shape.OBJECT,
    begin="<|action_start|><|plugin|>",
    others=("<|action_start|> <|plugin|>",),
    end="<|action_end|>",
    arguments="parameters",
    between="\n",
    pad="\n",
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json", shape=Shape.OBJECT, begin="<|python_tag|>", bare="{", arguments="parameters", between="; "
)
MISTRAL = ToolFormat(name="mistral", shape=Shape.LIST, begin="[TOOL_CALLS]", between=", ", new_id=short_id, ids=NINE)
MISTRAL_ARGS = ToolFormat(
    name="mistral_args", shape=Shape.NAMED, begin="[TOOL_CALLS]", middle="[ARGS]", new_id=short_id, ids=NINE
)
GRANITE = ToolFormat(name="granite", shape=Shape.LIST, begin="<|tool_call|>", others=("<tool_call>",), between=", ")
PHI4_MINI = replace(GRANITE, name="phi4_mini", end="<|/tool_call|>", others=("functools",), other_ends=("<|/tool_call|>",))
PHI4_MINI_JSON = replace(PHI4_MINI, name="phi4_mini_json", begin="functools", end="", others=("<|tool_call|>",))
NEMOTRON = ToolFormat(name="nemotron", shape=Shape.LIST, begin="<TOOLCALL>", end="</TOOLCALL>", between=", ")
HUNYUAN = replace(NEMOTRON, name="hunyuan", begin="<tool_calls>", end="</tool_calls>")
APERTUS = replace(NEMOTRON, name="apertus", begin="<|tools_prefix|>", end="<|tools_suffix|>", keyed=True)
XLAM = ToolFormat(
    name="xlam",
    shape=Shape.LIST,
    begin="",
    others=("<tool_call>", "[TOOL_CALLS]"),
    other_ends=("</tool_call>",),
    bare="[{",
    between=", ",
)
GRANITE_20B_FC = ToolFormat(
    name="granite_20b_fc", shape=Shape.OBJECT, begin="<function_call>", other_ends=("</function_call>",), between="\n", pad=" "
)
GIGACHAT3 = ToolFormat(
    name="gigachat3",
    shape=Shape.OBJECT,
    begin="function call<|role_sep|>\n",
    others=("<|function_call|>",),
    between="<|message_sep|>\n\n",
    silent=("<|message_sep|>",),
    before=("<|message_sep|>\n\n",),
)
GIGACHAT31 = replace(
    GIGACHAT3, name="gigachat31", begin="<|function_call|>", others=("function call<|role_sep|>\n",), between="", before=()
)
COHERE = ToolFormat(
    name="cohere",
    shape=Shape.LIST,
    begin="<|START_ACTION|>",
    end="<|END_ACTION|>",
    function="tool_name",
    arguments="parameters",
    between=",\n    ",
    listed=("[\n    ", "\n]"),
)
HARMONY = ToolFormat(name="harmony", shape=Shape.CHANNELS, begin="<|channel|>", middle="<|message|>", end="<|call|>")
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    shape=Shape.SECTION,
    begin="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
    opening="<｜tool▁call▁begin｜>",
    closing="<｜tool▁call▁end｜>",
    middle="<｜tool▁sep｜>",
)
DEEPSEEK_V3 = replace(DEEPSEEK_V31, name="deepseek_v3", fenced=True, between="\n")
KIMI_K2 = ToolFormat(
    name="kimi_k2",
    shape=Shape.SECTION,
    begin="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
    others=("<|tool_call_section_begin|>",),
    other_ends=("<|tool_call_section_end|>",),
    opening="<|tool_call_begin|>",
    closing="<|tool_call_end|>",
    middle="<|tool_call_argument_begin|>",
    numbered=True,
    new_id=numbered_id,
    ids=NUMBERED,
)
PYTHONIC = ToolFormat(
    name="pythonic", shape=Shape.PYTHON, begin="<|python_start|>", end="<|python_end|>", bare="[{", between=", "
)
LFM2 = replace(PYTHONIC, name="lfm2", begin="<|tool_call_start|>", end="<|tool_call_end|>", bare="")
OLMO3 = replace(LFM2, name="olmo3", begin="<function_calls>", end="</function_calls>", between="\n", listed=("\n", "\n"))
GEMMA4 = ToolFormat(name="gemma4", shape=Shape.BRACES, begin="<|tool_call>", end="<tool_call|>", quotes='<|"|>')
FUNCTIONGEMMA = replace(GEMMA4, name="functiongemma", begin="<start_function_call>", end="<end_function_call>", quotes="<escape>")

_ALL = (
    HERMES,
    LONGCAT,
    INTERNLM,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    GRANITE,
    PHI4_MINI,
    PHI4_MINI_JSON,
    NEMOTRON,
    HUNYUAN,
    APERTUS,
    XLAM,
    GRANITE_20B_FC,
    GIGACHAT3,
    GIGACHAT31,
    COHERE,
    QWEN3_CODER,
    SEED_OSS,
    GLM45,
    GLM47,
    LONGCAT_TAGS,
    SOLAR_OPEN2,
    MINICPM5,
    HY3,
    HY4,
    K2_HORIZON,
    MINIMAX_M2,
    MINIMAX_M3,
    DOTS,
    STEP_3,
    HARMONY,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    DEEPSEEK_V4,
    GIGACHAT35,
    KIMI_K2,
    KIMI_K3,
    PYTHONIC,
    LFM2,
    OLMO3,
    GEMMA4,
    FUNCTIONGEMMA,
)
TOOL_FORMATS = {item.name: item for item in _ALL}


def shows_channels(template: str) -> bool:
    """Whether a chat template has its model write in channels, thoughts in one of their own."""
    return HARMONY.begin in template and HARMONY.middle in template


def format_of(template: str) -> ToolFormat | None:
    """The form that a chat template shows its model; None where it shows none of these."""
    if shows_channels(template):
        return HARMONY
    for form, shown in _SHOWN:
        if all(mark in template for mark in shown):
            return form
    return None


_SHOWN: tuple[tuple[ToolFormat, tuple[str, ...]], ...] = (
    (GIGACHAT35, ("｜GCML｜",)),
    (GIGACHAT31, ("<|role_sep|>", "<|message_sep|>", "<|function_call|>")),
    (GIGACHAT3, ("<|role_sep|>", "<|message_sep|>", "function call")),
    (KIMI_K3, ("<|open|>", "<|close|>", "<|end_of_msg|>")),
    (MINIMAX_M3, ("]<]minimax[>[", "<invoke name=")),
    (STEP_3, ("<steptml:invoke",)),
    (STEP_3, (STEP_3.begin,)),
    (APERTUS, (APERTUS.begin,)),
    (DOTS, (DOTS.begin,)),
    (K2_HORIZON, (K2_HORIZON.opening,)),
    (SOLAR_OPEN2, (SOLAR_OPEN2.begin,)),
    (HY4, ("arg_key", ":opensource")),
    (HY3, ("tool_sep", "arg_key")),
    (MINICPM5, (MINICPM5.begin, "<param name=")),
    (DEEPSEEK_V32, ("｜DSML｜", "function_calls>")),
    (DEEPSEEK_V4, ("｜DSML｜",)),
    (DEEPSEEK_V3, (DEEPSEEK_V3.middle, "```json")),
    (DEEPSEEK_V31, (DEEPSEEK_V31.middle,)),
    (KIMI_K2, (KIMI_K2.begin,)),
    (KIMI_K2, ("tool_declare", "<|im_middle|>")),
    (MISTRAL_ARGS, (MISTRAL_ARGS.begin, MISTRAL_ARGS.middle)),
    (MISTRAL, (MISTRAL.begin,)),
    (COHERE, (COHERE.begin,)),
    (MINIMAX_M2, (MINIMAX_M2.begin,)),
    (NEMOTRON, (NEMOTRON.begin,)),
    (LONGCAT_TAGS, ("<longcat_arg_key>",)),
    (LONGCAT, (LONGCAT.begin,)),
    (INTERNLM, (INTERNLM.begin,)),
    (HUNYUAN, (HUNYUAN.begin,)),
    (SEED_OSS, (QWEN3_CODER.opening, "<parameter=", SEED_OSS.begin)),
    (QWEN3_CODER, (QWEN3_CODER.opening, "<parameter=", QWEN3_CODER.begin)),
    (GLM45, (GLM45.begin, "<arg_key>", "\n<arg_key>")),
    (GLM47, (GLM47.begin, "<arg_key>")),
    (PHI4_MINI_JSON, ("functools[",)),
    (PHI4_MINI, (PHI4_MINI.end,)),
    (GRANITE, (GRANITE.begin,)),
    (HERMES, (HERMES.begin,)),
    (LFM2, (LFM2.begin,)),
    (LFM2, ("<|tool_list_start|>",)),
    (OLMO3, (OLMO3.begin,)),
    (GRANITE_20B_FC, (GRANITE_20B_FC.begin,)),
    (XLAM, ('[{"name": "tool_call_name"',)),
    (GEMMA4, (GEMMA4.begin, GEMMA4.quotes)),
    (FUNCTIONGEMMA, (FUNCTIONGEMMA.begin,)),
    (PYTHONIC, ("[func_name1(",)),
    (PYTHONIC, ("[func1(",)),
    (LLAMA3_JSON, (LLAMA3_JSON.begin,)),
    (LLAMA3_JSON, ("ipython", '"parameters": ')),
)
"""By what a template shows, the more telling first."""
