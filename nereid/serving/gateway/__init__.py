"""An OpenAI-compatible HTTP face of the served models; speaks gRPC to Triton, so that a lost caller is noticed."""
