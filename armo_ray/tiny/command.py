"""`armo-ray tiny-model`: write a model into a directory, as a whole or not at all."""

from pathlib import Path

from armo_ray.errors import ConfigError
from armo_ray.storage.scratch import scratch_directory
from armo_ray.tiny.families import write_family
from armo_ray.tiny.options import TinyModelOptions


def run(options: TinyModelOptions) -> None:
    """Write the model. Raises ConfigError if the directory is not empty."""
    directory = Path(options.directory)
    filled = f"{directory} exists and is not an empty directory"
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(filled)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(directory.parent, f".{directory.name}-") as beside:
        whole = beside / "model"
        write_family(whole, options.family, options.backbone, options.seed)
        try:
            whole.rename(directory)
        except OSError as error:  # another command was faster
            raise ConfigError(filled) from error
    print(f"{directory}: a random model of the family {options.family}, 2 layers; its scores mean nothing")
