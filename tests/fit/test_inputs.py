"""What a fit refuses to start from."""

from dataclasses import replace
from pathlib import Path

import pytest

from armo_ray.errors import ConfigError
from armo_ray.fit.inputs import find_backbone, open_inputs
from armo_ray.fit.options import FitOptions
from armo_ray.model.families import FAMILIES
from armo_ray.outputs.hidden import HiddenOutputs, open_hidden
from tests.support.rated import embed_rows, rated_rows

READ_ALIKE = {
    *("armorm", "qrm", "classifier", "mlp-classifier", "urm", "value-head", "trl-value-head"),
    *("grm", "token-logit", "ldl"),
}


@pytest.fixture(scope="module")
def hidden(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pairs in three units."""
    return embed_rows(tiny_model, tmp_path_factory.mktemp("rated"), rated_rows(20), unit_rows=16)


def options_for(hidden: Path, **options: object) -> FitOptions:
    return FitOptions.model_validate({"scores": [str(hidden)], "output": "model", **options})


def states_of(hidden: Path, family: str) -> HiddenOutputs:
    opened = open_hidden([str(hidden)])
    return replace(opened, metadata={**opened.metadata, "model_family": family})


@pytest.mark.parametrize("family", [*sorted(FAMILIES.keys() - READ_ALIKE), "of-a-file"])
def test_states_of_a_text_that_the_fitted_head_would_not_read_are_refused(family: str, hidden: Path) -> None:
    with pytest.raises(ConfigError, match=f"the family {family} reads, .*: make them with armo-ray embed"):
        find_backbone(options_for(hidden), states_of(hidden, family))


@pytest.mark.parametrize("family", sorted(READ_ALIKE - {"armorm"}))
def test_states_of_the_same_text_are_refused_only_if_the_model_is_another(family: str, hidden: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a complete head of|its fingerprint is|has no"):
        find_backbone(options_for(hidden), states_of(hidden, family))


@pytest.mark.parametrize("family", ["hidden", "armorm"])
def test_states_of_embed_or_of_the_head_that_is_there_are_taken(family: str, hidden: Path) -> None:
    model = find_backbone(options_for(hidden), states_of(hidden, family))
    assert model.family.name == family


def test_pairs_that_were_read_as_other_text_than_the_labels_are_refused(
    hidden: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = embed_rows(tiny_model, tmp_path, rated_rows(4), special_tokens="reference")
    with pytest.raises(ConfigError, match=r"special_tokens is 'plain' in .*, 'reference' in"):
        open_inputs(options_for(hidden, pairs=[str(other)]))
