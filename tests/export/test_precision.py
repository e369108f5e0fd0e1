"""What `--precision` may say, of all components and of one."""

from __future__ import annotations

import pytest

from nereid_export.engines.precision import ERROR_BOUNDS, PSNR_BOUNDS, Precision, Precisions, parse_precisions, require_components
from nereid_export.errors import ExportError


@pytest.mark.parametrize(
    ("text", "usual", "by_component"),
    [
        ("fp32", Precision.FP32, {}),
        ("int8", Precision.INT8, {}),
        ("unet=int8", Precision.FP32, {"unet": Precision.INT8}),
        ("int8, vae_decoder = fp32", Precision.INT8, {"vae_decoder": Precision.FP32}),
        (
            "unet=int8-dynamic,text_encoder=int4-weights,fp16",
            Precision.FP16,
            {"unet": Precision.INT8_DYNAMIC, "text_encoder": Precision.INT4_WEIGHTS},
        ),
    ],
)
def test_a_precision_is_of_all_components_or_of_one(text: str, usual: Precision, by_component: dict[str, Precision]) -> None:
    made = parse_precisions(text)
    assert made == Precisions(usual, by_component)
    assert parse_precisions(str(made)) == made
    assert made.of("unet") is by_component.get("unet", usual)


@pytest.mark.parametrize(
    "text", ["", "int9", "unet=", "fp32,fp16", "unet=int8,unet=fp32", "=int8", "unet=int8=fp32", "w4a8", "unet=w4a8"]
)
def test_what_names_no_precision_or_one_twice_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match=r"--precision: .* is not allowed; it must"):
        parse_precisions(text)


def test_a_component_that_the_checkpoint_lacks_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="'text_encoder_2' is not allowed; the checkpoint's components are text_encoder, unet"):
        require_components(parse_precisions("text_encoder_2=int8"), ("text_encoder", "unet"))


def test_every_precision_has_bounds() -> None:
    assert set(ERROR_BOUNDS) == set(Precision)
    assert set(PSNR_BOUNDS) == set(Precision) - {Precision.FP32, Precision.W4A8}  # layouts are no pictures
