"""The part of AUTOMATIC1111's /sdapi/v1 that front ends use to draw."""
