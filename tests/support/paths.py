"""Where the checkout and its sample lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "jobs" / "samples" / "llmbar.jsonl"
