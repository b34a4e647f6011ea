"""Networks that take a picture beside the prompt: ControlNet, T2I-Adapter, IP-Adapter."""
