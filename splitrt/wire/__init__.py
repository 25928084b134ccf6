"""What travels, generated from protos/ by protos/generate.sh; never edited."""
