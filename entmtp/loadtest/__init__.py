"""Load tests of an OpenAI-compatible endpoint: traffic, levels of load, latency and throughput."""
