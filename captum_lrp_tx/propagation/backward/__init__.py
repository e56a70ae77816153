"""The backward pass: its seed in half precision, many targets in packs, blocks that run again."""
