"""The temporal diffusion decoder: pose numbers, motion VAE, denoiser, sampling, and the classical filters."""
