"""Whether a finding holds: counts on held-out prompts with intervals, random baselines, verdicts by stated rules.

- `study_heads`: which heads carry what tells two prompts apart, tested on prompts that the search never saw.
- `flips`: for how many prompts a joint patch of some heads changes the most probable next token.
- `wilson`, `Share`: a proportion with its interval.
- `bootstrap_mean`: a mean with its interval.
"""

from jaxinterp.audit._flips import Flips, flips, random_sets
from jaxinterp.audit._intervals import Interval, Share, bootstrap_mean, wilson
from jaxinterp.audit._study import HeadStudy, IdleHead, attention_to_difference, study_heads

__all__ = [
    "Flips",
    "HeadStudy",
    "IdleHead",
    "Interval",
    "Share",
    "attention_to_difference",
    "bootstrap_mean",
    "flips",
    "random_sets",
    "study_heads",
    "wilson",
]
