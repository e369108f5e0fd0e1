"""The table of fields of other APIs (OpenAI's, vLLM's, AUTOMATIC1111's) that nothing here reads, and which of their values change
nothing.

A caller may send such a value: the answer is the one it asks for. Any other value is refused by name, for the answer would be
another. Fields that are honoured are written elsewhere (nereid_protocol.sampling, nereid_protocol.fields, the schemas). Names are
those of OpenAI's API reference, of vLLM's protocol of its OpenAI-compatible server, of llama.cpp's server, and of the bodies of
AUTOMATIC1111's /sdapi/v1 with what front ends send beside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS, MESSAGE, RESPONSES, EMBEDDINGS = "chat", "completions", "message", "responses", "embeddings"
PART, TOOL, CALL = "part of a message", "tool", "call of a tool"
IMAGES, EDITS, VARIATIONS = "images", "image edits", "image variations"
TXT2IMG, IMG2IMG, MASKED, SETTINGS = "txt2img", "img2img", "img2img with a mask", "override_settings"
_TEXTS, _PICTURES, _WEBUI = (CHAT, COMPLETIONS), (IMAGES, EDITS, VARIATIONS), (TXT2IMG, IMG2IMG)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedField:
    """`values` change nothing; None: no value does. `within` are the bodies that it may stand in."""

    name: str
    within: tuple[str, ...]
    values: tuple[Any, ...] | None
    help: str

    def allows(self, value: Any) -> bool:
        """Whether the value changes nothing; true is not 1 here, as it is not in JSON."""
        if self.values is None:
            return True
        return any(isinstance(value, bool) == isinstance(known, bool) and value == known for known in self.values)

    @property
    def allowed(self) -> str:
        """What may be sent, in words."""
        if self.values is None:
            return "anything"
        return " or ".join([*(_shown(value) for value in self.values), "absent"])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _rows(within: tuple[str, ...], *rows: tuple[str, tuple[Any, ...] | None, str]) -> tuple[UnusedField, ...]:
    return tuple(UnusedField(name=name, within=within, values=values, help=text) for name, values, text in rows)


_WHO = "Says who asks, or why."
_WHERE = "Says where, or how soon, it is to be computed."
_VARIED = "Of subseed_strength."
_CHURN = "Of s_churn."
_SCRIPT = "Of script_name."
_OWN = "A front end's own."
_KEPT = "Nothing is kept on the server."
_SECOND = "Of enable_hr."
_INPAINTING = "Of masks."
_ELSEWHERE = "What another provider has told beside an answer of its own."
_CACHE = "About a provider's cache; the prefix cache here needs no hint."

UNUSED_FIELDS: tuple[UnusedField, ...] = (
    *_rows(
        (*_TEXTS, *_PICTURES),
        ("user", None, _WHO),
        ("metadata", None, _WHO),
        ("safety_identifier", None, _WHO),
        ("request_id", None, _WHO),
        ("store", None, "Nothing is stored for the provider's pages."),
        ("service_tier", ("auto", "default"), _WHERE),
    ),
    *_rows(
        _TEXTS,
        ("prompt_cache_key", None, _CACHE),
        ("prompt_cache_retention", None, _CACHE),
        ("prompt_cache_options", None, _CACHE),
        ("cache_prompt", None, "llama.cpp's, about its cache; the prefix cache here changes no answer."),
        ("guided_decoding_backend", None, "There is one."),
        ("data_parallel_rank", (0,), _WHERE),
        ("kv_transfer_params", ({},), _WHERE),
        ("vllm_xargs", ({},), "Arguments of vLLM's plugins."),
        ("use_beam_search", (False,), "Beam search."),
        ("length_penalty", (1.0,), "Of beam search."),
        ("early_stopping", (False,), "Of beam search."),
        ("logits_processors", ([],), "Code of the caller's."),
        ("spaces_between_special_tokens", (True,), "Of the text of special tokens."),
        ("detokenize", (True,), "Whether tokens become text."),
        ("thinking_token_budget", (-1,), "Tokens of reasoning."),
        ("repetition_detection", (), "Ends answers that repeat themselves."),
        ("session_id", None, _WHO),
        ("stream_interval", None, "Tokens of a chunk; a stream has them as they come."),
        ("watermarking", (False,), "Answers that can be known for a model's."),
        ("ec_transfer_params", ({},), _WHERE),
        ("routed_experts_prompt_start", (0,), "Of which experts have computed a token."),
        ("return_token_offsets", (False,), "Of prompts that are only shown."),
        ("return_mm_kwargs", (True,), "Of prompts that are only shown."),
    ),
    *_rows(
        (CHAT,),
        ("best_of", (1,), "Answers to choose from."),
        ("echo", (False,), "The last message before the answer."),
        ("modalities", (["text"],), "What the answer is made of."),
        ("audio", (), "How an answer sounds."),
        ("prediction", None, "A guess at the answer, to be sooner done; the answer is the same without it."),
        ("verbosity", ("medium",), "How long the answer is to be."),
        ("web_search_options", (), "Looks into the web."),
        ("moderation", (), "Another model's judgement of the answer."),
        ("return_prompt_text", (False,), "What the chat template has made of the chat."),
        ("mm_processor_kwargs", ({},), "Of pictures in messages."),
        ("media_io_kwargs", ({},), "Of pictures in messages."),
    ),
    *_rows(
        (RESPONSES,),
        ("user", None, _WHO),
        ("safety_identifier", None, _WHO),
        ("prompt_cache_key", None, _CACHE),
        ("prompt_cache_retention", None, _CACHE),
        ("prompt_cache_options", None, _CACHE),
        ("service_tier", ("auto", "default"), _WHERE),
        ("client_metadata", None, _WHO),
        ("background", (False,), "Whether the caller asks for the answer later."),
        ("background_options", None, "Of background."),
        ("max_tool_calls", None, "Of tools that a provider runs itself; there are none here."),
        ("conversation", (), "A provider's store of conversations."),
        ("prompt", (), "A provider's store of prompts."),
        ("context_management", ([],), "Shortens the conversation."),
        ("moderation", (), "Another model's judgement of the answer."),
        ("image", (), "Of pictures in messages."),
        ("mm_processor_kwargs", ({},), "Of pictures in messages."),
        ("request_id", None, _WHO),
        ("vllm_xargs", ({},), "Arguments of vLLM's plugins."),
        ("enable_response_messages", (False,), "What the chat template has made of the chat."),
        ("previous_input_messages", (), "An earlier conversation in vLLM's form."),
        ("previous_response", (), "An earlier answer as a whole; previous_response_id names one that is kept."),
    ),
    *_rows(
        (COMPLETIONS,),
        ("prompt_embeds", (), "A prompt as vectors."),
    ),
    *_rows(
        (EMBEDDINGS,),
        ("user", None, _WHO),
        ("metadata", None, _WHO),
        ("safety_identifier", None, _WHO),
        ("request_id", None, _WHO),
        ("service_tier", ("auto", "default"), _WHERE),
        ("normalize", (False,), "Makes the vectors one long; they are the mean of the last hidden states as it is."),
        ("embed_dtype", ("float32",), "Of the numbers."),
        ("endianness", ("native", "little"), "Of the numbers in base64."),
        ("cache_salt", None, "Keeps callers' prefixes apart; nothing of an input is kept."),
    ),
    *_rows(
        _PICTURES,
        ("background", ("auto", "opaque"), "Pictures are opaque."),
        ("moderation", ("auto", "low"), "Nothing is moderated."),
        ("style", ("vivid",), "A style of the provider's models; this one is what absent is."),
        ("frame_count", (1,), "Of moving pictures."),
        ("frame_duration_ms", (), "Of moving pictures."),
        ("complexity", (), "Of drawings."),
        ("svg", (), "Of drawings."),
    ),
    *_rows((IMAGES,), ("input_fidelity", (), "Of pictures that are changed.")),
    *_rows((EDITS, VARIATIONS), ("input_fidelity", ("low",), "strength says how much of the picture is replaced.")),
    *_rows(
        _WEBUI,
        ("styles", ([], [""]), "Texts that are kept on the server."),
        ("restore_faces", (False,), "Another model, for faces."),
        ("tiling", (False,), "Pictures whose edges meet."),
        ("subseed", None, _VARIED),
        ("subseed_strength", (0,), "Noise between those of two seeds."),
        ("seed_resize_from_w", (-1, 0), "Noise of another size."),
        ("seed_resize_from_h", (-1, 0), "Noise of another size."),
        ("s_min_uncond", (0,), "Guidance left out; here guidance_interval of the other APIs."),
        ("s_churn", (0,), "Fresh noise in steps of Euler."),
        ("s_tmin", (0,), _CHURN),
        ("s_tmax", None, _CHURN),
        ("refiner_checkpoint", ("", "None"), "A second model for the last steps."),
        ("refiner_switch_at", None, "Of a refiner."),
        ("script_name", ("", "None"), "A program on the server."),
        ("script_args", None, _SCRIPT),
        ("alwayson_scripts", ({},), "Programs on the server."),
        ("infotext", ("",), "Fields as one text."),
        ("clip_skip", (0, 1), "Text features of an earlier layer."),
        ("distilled_cfg_scale", None, "Forge's, of Flux, which is not served; other models there do not read it."),
        ("do_not_save_samples", None, _KEPT),
        ("do_not_save_grid", None, _KEPT),
        ("save_images", None, _KEPT),
        ("disable_extra_networks", None, "There are none."),
        ("comments", None, _WHO),
        ("force_task_id", None, _WHO),
        ("url", None, "Where a front end finds this server."),
        ("auth", None, "How a front end finds this server."),
        ("mode", None, "Said by the path, too."),
        ("original_prompt", None, _OWN),
        ("original_negative_prompt", None, _OWN),
        ("use_prompt_shortcut", None, _OWN),
        ("prompt_shortcut_ui_dict", None, _OWN),
        ("uniqueDocumentId", None, _OWN),
        ("init_image_name", None, _OWN),
    ),
    *_rows((TXT2IMG,), ("denoising_strength", None, _SECOND)),
    *_rows(
        _WEBUI,
        ("enable_hr", (False,), "A second run at a larger size."),
        ("firstphase_width", None, _SECOND),
        ("firstphase_height", None, _SECOND),
        ("firstpass_image", ("",), _SECOND),
        ("hr_scale", None, _SECOND),
        ("hr_upscaler", None, _SECOND),
        ("hr_second_pass_steps", None, _SECOND),
        ("hr_resize_x", None, _SECOND),
        ("hr_resize_y", None, _SECOND),
        ("hr_checkpoint_name", None, _SECOND),
        ("hr_sampler_name", None, _SECOND),
        ("hr_scheduler", None, _SECOND),
        ("hr_cfg", None, _SECOND),
        ("hr_distilled_cfg", None, _SECOND),
        ("hr_force", None, _SECOND),
        ("hr_prompt", None, _SECOND),
        ("hr_negative_prompt", None, _SECOND),
        ("hr_additional_modules", None, _SECOND),
    ),
    *_rows(
        (IMG2IMG,),
        ("image_cfg_scale", None, "Of models for instructions."),
        ("initial_noise_multiplier", (1,), "More noise at the start."),
        ("latent_mask", ("",), _INPAINTING),
        ("mask_round", None, _INPAINTING),
        ("use_sharp_mask", None, _INPAINTING),
        ("image_similarity", None, "Said by denoising_strength, too."),
    ),
    *_rows(
        (MASKED,),
        ("mask_round", (True,), "Whether a point is drawn anew or not, or a little."),
        ("use_sharp_mask", (False,), "A mask without mask_blur."),
    ),
    *_rows(
        (SETTINGS,),
        ("CLIP_stop_at_last_layers", (1,), "Text features of an earlier layer."),
        ("sd_vae", ("Automatic", "None", ""), "Another VAE than the checkpoint's."),
        ("eta_noise_seed_delta", (0,), "Other noise within a run."),
        ("samples_save", None, _KEPT),
        ("grid_save", None, _KEPT),
        ("return_grid", (False,), "One picture of all."),
        ("show_progress_every_n_steps", None, "Every step is shown."),
        ("img2img_background_color", ("#ffffff",), "What transparent pixels become."),
        ("img2img_color_correction", (False,), "The colours of the picture that was sent."),
        ("img2img_fix_steps", (False,), "As many steps from a picture as without one."),
        ("initial_noise_multiplier", (1,), "More noise at the start."),
        ("inpainting_mask_weight", None, _INPAINTING),
        ("ddim_discretize", ("uniform",), "Which timesteps DDIM visits; here a schedule says it."),
        ("comma_padding_backtrack", None, "Of prompts that are read in parts."),
        ("sd_hypernetwork", ("None", ""), "Weights beside the checkpoint's."),
        ("sd_model_refiner", ("None", ""), "A second model for the last steps."),
        ("face_restoration_model", None, "Of restore_faces."),
        ("forge_additional_modules", ([],), "Weights beside the checkpoint's."),
        ("forge_preset", None, "Which fields a front end shows."),
        ("forge_unet_storage_dtype", ("Automatic",), "Of the weights; here export says it."),
        ("forge_inference_memory", None, _WHERE),
        ("forge_async_loading", None, _WHERE),
        ("forge_pin_shared_memory", None, _WHERE),
    ),
    *_rows((CHAT, MESSAGE, PART, TOOL), ("cache_control", None, _CACHE)),
    *_rows(
        (MESSAGE, CALL),
        ("provider_specific_fields", None, _ELSEWHERE),
        ("extra_content", None, _ELSEWHERE),
    ),
    *_rows(
        (MESSAGE,),
        ("id", None, "A message's name."),
        ("reasoning_details", None, "Thoughts in another provider's form; reasoning_content is read."),
        ("thinking_blocks", None, "Thoughts in another provider's form; reasoning_content is read."),
        ("images", ([],), "Pictures of another model's answer."),
        ("refusal", ("",), "An answer that another model refused."),
        ("annotations", ([],), "Sources of another model's answer."),
        ("audio", (), "A spoken answer."),
    ),
)

_BY_PLACE = {(place, row.name): row for row in UNUSED_FIELDS for place in row.within}


def taken_values(within: str) -> dict[str, dict[str, Any]]:
    """JSON schemas of the fields of this body that nothing reads and that may be sent all the same, by name."""
    rows = [row for (place, _), row in _BY_PLACE.items() if place == within and row.values != ()]
    return {row.name: _schema(row) for row in rows}


def _schema(row: UnusedField) -> dict[str, Any]:
    return {"description": row.help, **({} if row.values is None else {"enum": [*row.values, None]})}


def unused_field(within: str, name: str) -> UnusedField | None:
    """The table's row of a field in this body; None where it has none."""
    return _BY_PLACE.get((within, name))
