"""`shapes`: coloured shapes on plain backgrounds, drawn from a caption by a small latent diffusion model."""
