"""An HTTP server as of OpenAI's completions, on the engine of megatron.inference."""
