"""Linear probe and MLP: a classifier on the global embedding of a frozen encoder."""

from __future__ import annotations

from typing import Any

from hpdval.models.heads import Classifier
from hpdval.rival_configs import ProbeConfig
from hpdval.scoring import HeadScorer, Scorer
from hpdval.training.rivals.frozen import fit_head
from hpdval.training.session import TrainingSession, selected


def train_probe(session: TrainingSession, config: ProbeConfig) -> Scorer:
    """Train a linear classifier or an MLP on features (Radford et al., ICML 2021, section 3.2, for several labels)."""
    encoder, classes = session.start.encoder, session.dataset.classes
    options = {"hidden": config.hidden, "seed": session.experiment.seed}
    head = Classifier(encoder.embed_dim, len(classes), **options).to(encoder.device)
    about: dict[str, Any] = {"method": config.label, "precision": config.precision, **selected(session)}

    def scorer() -> Scorer:
        return HeadScorer(encoder, classes, head, ("classifier", options), **about)

    return fit_head(session, config, head, head, scorer)
