"""The HTTP gateway: OpenAI's and Anthropic's shapes over the request path that gRPC uses. Runs on the daemon's loop."""
